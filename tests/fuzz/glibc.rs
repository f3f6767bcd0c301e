//! `getopt_long` of the C library: what isolate reads its arguments with.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Mutex;

/// What an option takes, as `struct option` numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    Nothing,
    Value,
    Maybe,
}

/// `struct option` (getopt_long(3)).
#[repr(C)]
struct LongOption {
    name: *const c_char,
    has_arg: c_int,
    flag: *mut c_int,
    val: c_int,
}

#[expect(unsafe_code, reason = "the C library's own reading is what others are compared with")]
mod c {
    use super::{LongOption, c_char, c_int};

    unsafe extern "C" {
        pub(super) static mut optarg: *mut c_char;
        pub(super) static mut optind: c_int;
        pub(super) static mut opterr: c_int;

        pub(super) fn getopt_long(
            argc: c_int,
            argv: *const *mut c_char,
            short: *const c_char,
            long: *const LongOption,
            index: *mut c_int,
        ) -> c_int;
    }
}

/// Options by their long names with their values, and the other arguments.
type Read = (Vec<(&'static str, Option<OsString>)>, Vec<OsString>);

/// Reads arguments with a table of names, letters and what is taken; `None` where one is refused. `in_order` is what
/// `POSIXLY_CORRECT` in the environment makes of it.
pub(crate) fn getopt_long(
    words: &[CString],
    table: &[(&'static str, u8, Takes)],
    in_order: bool,
) -> Option<Read> {
    const FIRST: c_int = 256;
    /// The C library keeps its place in variables of the process.
    static ONE: Mutex<()> = Mutex::new(());
    let names: Vec<CString> = table.iter().map(|(name, ..)| CString::new(*name).unwrap()).collect();
    let end = LongOption { name: std::ptr::null(), has_arg: 0, flag: std::ptr::null_mut(), val: 0 };
    let numbered = (FIRST..).zip(table.iter().zip(&names));
    let long: Vec<LongOption> = numbered
        .map(|(val, ((_, _, takes), name))| LongOption {
            name: name.as_ptr(),
            has_arg: *takes as c_int,
            flag: std::ptr::null_mut(),
            val,
        })
        .chain([end])
        .collect();
    let mut short = if in_order { b"+".to_vec() } else { Vec::new() };
    for (_, letter, takes) in table.iter().filter(|(_, letter, _)| *letter != 0) {
        short.push(*letter);
        short.extend(std::iter::repeat_n(b':', *takes as usize));
    }
    let short = CString::new(short).unwrap();
    let mut owned = vec![CString::new("isolate").unwrap()];
    owned.extend_from_slice(words);
    let mut argv: Vec<*mut c_char> = owned.iter().map(|word| word.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    let argc = c_int::try_from(owned.len()).unwrap();
    let text = |word: *const c_char| -> OsString {
        // SAFETY: The word is one of `owned`, or the rest of one, and ends with a NUL.
        #[expect(unsafe_code, reason = "a string of the C library's")]
        let word = unsafe { CStr::from_ptr(word) };
        OsStr::from_bytes(word.to_bytes()).to_owned()
    };

    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut options = Vec::new();
    // SAFETY: An index of 0 has glibc begin anew (getopt(3), NOTES). Only this function uses these variables, under a lock.
    #[expect(unsafe_code, reason = "variables of the C library")]
    unsafe {
        c::optind = 0;
        c::opterr = 0;
    }
    loop {
        // SAFETY: `argv` has `argc` strings and a null pointer, the table ends with a null one, and all outlive the call. It
        // reorders the pointers and writes through none of them.
        #[expect(unsafe_code, reason = "a call of the C library")]
        let (option, value) = unsafe {
            let option =
                c::getopt_long(argc, argv.as_mut_ptr(), short.as_ptr(), long.as_ptr(), std::ptr::null_mut());
            (option, c::optarg)
        };
        let row = match option {
            -1 => break,
            63 => return None,
            option if option >= FIRST => &table[usize::try_from(option - FIRST).unwrap()],
            letter => {
                table.iter().find(|(_, own, _)| c_int::from(*own) == letter).expect("a letter of the table")
            }
        };
        let value = (row.2 != Takes::Nothing && !value.is_null()).then(|| text(value));
        options.push((row.0, value));
    }
    // SAFETY: As above.
    #[expect(unsafe_code, reason = "a variable of the C library")]
    let rest = usize::try_from(unsafe { c::optind }).unwrap();
    Some((options, argv[rest..owned.len()].iter().map(|word| text(*word)).collect()))
}
