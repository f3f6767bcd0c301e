//! The file that the kernel starts in place of a program: the loader of an ELF file, or the interpreter of a script.
//!
//! If it does not exist, execve(2) fails with ENOENT, as if the program itself were missing.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// How much of a script's first line the kernel reads (linux/binfmts.h, `BINPRM_BUF_SIZE`).
const LINE_MAX: u64 = 256;
/// Longest path (linux/limits.h).
const PATH_MAX: u64 = 4096;
/// The largest number of program headers that is read. The kernel reads one page of them, 1170 of the smallest.
const HEADERS_MAX: u64 = 1170;
/// Type of the program header that names the loader (elf(5)).
const PT_INTERP: u64 = 3;

/// The kind of file that names an interpreter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterpreterKind {
    /// The loader of an ELF file, which links it with its libraries.
    Loader,
    /// The interpreter of a script, named in its first line.
    Script,
}

impl fmt::Display for InterpreterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loader => "loader",
            Self::Script => "interpreter",
        })
    }
}

/// Returns the interpreter that a program names. `None` if it names none, or is of a format that this does not know.
pub(super) fn interpreter(program: &File) -> io::Result<Option<(InterpreterKind, PathBuf)>> {
    let mut start = Vec::new();
    program.take(LINE_MAX).read_to_end(&mut start)?;
    let found = match start.as_slice() {
        [b'#', b'!', line @ ..] => of_script(line).map(|path| (InterpreterKind::Script, path)),
        [0x7f, b'E', b'L', b'F', ..] => of_elf(program, &start)?.map(|path| (InterpreterKind::Loader, path)),
        _ => None,
    };
    Ok(found.map(|(kind, path)| (kind, PathBuf::from(OsStr::from_bytes(&path)))))
}

/// Returns the first word of a script's first line, after `#!`.
fn of_script(line: &[u8]) -> Option<Vec<u8>> {
    let line = line.split(|byte| matches!(byte, b'\n' | 0)).next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t'));
    words.find(|word| !word.is_empty()).map(<[u8]>::to_vec)
}

/// Returns the path in the program header `PT_INTERP` (elf(5)).
fn of_elf(program: &File, header: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let (Some(&class), Some(&order)) = (header.get(4), header.get(5)) else { return Ok(None) };
    let (is_64, is_little) = (class == 2, order == 1);
    let number = |bytes: &[u8], at: usize, length: usize| -> Option<u64> {
        let bytes = bytes.get(at..at + length)?;
        let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if is_little { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) })
    };
    let word = if is_64 { 8 } else { 4 };
    // Offsets of e_phoff, e_phentsize and e_phnum in the file header; then of p_offset and p_filesz in a program header.
    let (table, size, count) = if is_64 { (32, 54, 56) } else { (28, 42, 44) };
    let (offset, length) = if is_64 { (8, 32) } else { (4, 16) };
    let (Some(table), Some(size), Some(count)) =
        (number(header, table, word), number(header, size, 2), number(header, count, 2))
    else {
        return Ok(None);
    };
    let mut headers = vec![0; usize::try_from(size * count.min(HEADERS_MAX)).unwrap_or(0)];
    if size == 0 || program.read_exact_at(&mut headers, table).is_err() {
        return Ok(None);
    }
    for header in headers.chunks(usize::try_from(size).unwrap_or(usize::MAX)) {
        if number(header, 0, 4) != Some(PT_INTERP) {
            continue;
        }
        let (Some(offset), Some(length)) = (number(header, offset, word), number(header, length, word))
        else {
            return Ok(None);
        };
        let mut path = vec![0; usize::try_from(length.min(PATH_MAX)).unwrap_or(0)];
        if program.read_exact_at(&mut path, offset).is_err() {
            return Ok(None);
        }
        let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
        return Ok((!path.is_empty()).then(|| path.to_vec()));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};
    use std::path::Path;

    use super::*;

    fn of(bytes: &[u8]) -> Option<(InterpreterKind, PathBuf)> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        interpreter(&file).unwrap()
    }

    #[test]
    fn interpreter_of_a_script_is_the_first_word_after_the_mark() {
        for (text, expected) in [
            ("#!/bin/sh\necho", Some("/bin/sh")),
            ("#! \t/usr/bin/env python3\n", Some("/usr/bin/env")),
            ("#!/bin/sh\r\n", Some("/bin/sh\r")),
            ("#!sh", Some("sh")),
            ("#!\n/bin/sh", None),
            ("echo", None),
            ("", None),
        ] {
            let expected = expected.map(|path| (InterpreterKind::Script, PathBuf::from(path)));
            assert_eq!(of(text.as_bytes()), expected, "{text:?}");
        }
        assert!(of(&[b"#!/", &[b'a'; 5000][..]].concat()).unwrap().1.as_os_str().len() < 256);
    }

    #[test]
    fn loader_of_an_elf_file_is_read_from_its_program_headers() {
        let own = std::fs::read("/bin/true").unwrap();
        let (kind, loader) = of(&own).unwrap();
        assert_eq!(kind, InterpreterKind::Loader);
        assert!(loader.starts_with("/lib64") || loader.starts_with("/lib"), "{}", loader.display());
        assert!(Path::new(&loader).exists());
        // 32 bits, big endian: one program header at 52, the path at 84.
        let mut old = [&b"\x7fELF\x01\x02\x01"[..], &[0; 77]].concat();
        old[28..32].copy_from_slice(&52_u32.to_be_bytes());
        old[42..46].copy_from_slice(&[0, 32, 0, 1]);
        old[52..60].copy_from_slice(&[0, 0, 0, 3, 0, 0, 0, 84]);
        old[68..72].copy_from_slice(&12_u32.to_be_bytes());
        old.extend(b"/lib/ld.so.1\0");
        assert_eq!(of(&old), Some((InterpreterKind::Loader, "/lib/ld.so.1".into())));
        for length in [0, 4, 5, 6, 20, 50, 60, 84, 90] {
            assert_eq!(of(&old[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn damaged_elf_files_have_no_loader_and_cost_little() {
        let own = std::fs::read("/bin/true").unwrap();
        for at in 0..64 {
            for value in [0, 1, 2, 0x7f, 0xff] {
                let mut damaged = own[..4096].to_vec();
                damaged[at] = value;
                let _ = of(&damaged);
            }
        }
    }
}
