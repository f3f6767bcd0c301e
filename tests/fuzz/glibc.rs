//! Calls glibc's `getopt_long`, which isolate parses its arguments with.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Mutex;

/// Whether an option has_arg an argument. The discriminants are the values of `has_arg` in `struct option`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HasArg {
    No,
    Required,
    Optional,
}

/// `struct option` (getopt_long(3)).
#[repr(C)]
struct LongOption {
    name: *const c_char,
    has_arg: c_int,
    flag: *mut c_int,
    val: c_int,
}

#[expect(unsafe_code, reason = "declares the C library's parser, which the test compares ours with")]
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

/// Options by their long names with their values, and the remaining arguments.
type ParsedArguments = (Vec<(&'static str, Option<OsString>)>, Vec<OsString>);

/// Parses arguments with a table of long names, letters (0 for none) and argument kinds. Returns `None` if `getopt_long`
/// reports an error. With `in_order`, parsing stops at the first argument that is not an option, as with `POSIXLY_CORRECT`.
pub(crate) fn getopt_long(
    words: &[CString],
    table: &[(&'static str, u8, HasArg)],
    in_order: bool,
) -> Option<ParsedArguments> {
    const FIRST: c_int = 256;
    /// Held during a call, because `getopt_long` keeps its state in global variables.
    static GETOPT: Mutex<()> = Mutex::new(());
    let names: Vec<CString> = table.iter().map(|(name, ..)| CString::new(*name).unwrap()).collect();
    let end = LongOption { name: std::ptr::null(), has_arg: 0, flag: std::ptr::null_mut(), val: 0 };
    let numbered = (FIRST..).zip(table.iter().zip(&names));
    let long: Vec<LongOption> = numbered
        .map(|(val, ((_, _, has_arg), name))| LongOption {
            name: name.as_ptr(),
            has_arg: *has_arg as c_int,
            flag: std::ptr::null_mut(),
            val,
        })
        .chain([end])
        .collect();
    let mut short = if in_order { b"+".to_vec() } else { Vec::new() };
    for (_, letter, has_arg) in table.iter().filter(|(_, letter, _)| *letter != 0) {
        short.push(*letter);
        short.extend(std::iter::repeat_n(b':', *has_arg as usize));
    }
    let short = CString::new(short).unwrap();
    let mut owned = vec![CString::new("isolate").unwrap()];
    owned.extend_from_slice(words);
    let mut argv: Vec<*mut c_char> = owned.iter().map(|word| word.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    let argc = c_int::try_from(owned.len()).unwrap();
    let text = |word: *const c_char| -> OsString {
        // SAFETY: `word` points into one of the strings in `owned`, which end with a NUL.
        #[expect(unsafe_code, reason = "reads a C string")]
        let word = unsafe { CStr::from_ptr(word) };
        OsStr::from_bytes(word.to_bytes()).to_owned()
    };

    let _guard = GETOPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut options = Vec::new();
    // SAFETY: An `optind` of 0 makes glibc reinitialise its state (getopt(3), NOTES). Only this function uses these variables,
    // and it holds the lock.
    #[expect(unsafe_code, reason = "writes global variables of the C library")]
    unsafe {
        c::optind = 0;
        c::opterr = 0;
    }
    loop {
        // SAFETY: `argv` has `argc` strings followed by a null pointer, the table ends with an all-zero entry, and all of it
        // outlives the call. The call reorders the pointers but does not write through them.
        #[expect(unsafe_code, reason = "calls the C library")]
        let (option, value) = unsafe {
            let option =
                c::getopt_long(argc, argv.as_mut_ptr(), short.as_ptr(), long.as_ptr(), std::ptr::null_mut());
            (option, c::optarg)
        };
        let row = match option {
            -1 => break,
            63 => return None,
            option if option >= FIRST => &table[usize::try_from(option - FIRST).unwrap()],
            letter => table
                .iter()
                .find(|(_, own, _)| c_int::from(*own) == letter)
                .expect("getopt_long returns letters of the table only"),
        };
        let value = (row.2 != HasArg::No && !value.is_null()).then(|| text(value));
        options.push((row.0, value));
    }
    // SAFETY: Only this function uses `optind`, and it holds the lock.
    #[expect(unsafe_code, reason = "reads a global variable of the C library")]
    let rest = usize::try_from(unsafe { c::optind }).unwrap();
    Some((options, argv[rest..owned.len()].iter().map(|word| text(*word)).collect()))
}
