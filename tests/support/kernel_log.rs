//! The kernel's log, as far as it appears during a test.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::OFlags;

/// Lines that other tests cause on purpose, at the same time: the check whether the kernel has EROFS, and overlays of roots.
const OF_OTHER_TESTS: [&str; 4] = [
    "cannot find valid erofs superblock",
    "incompat feature 'volatile'",
    "statfs failed on '/proc/self/fd/",
    "upperdir is in-use",
];
/// The priority of warnings (syslog(2)). Lower numbers are worse.
const WARNING: u32 = 4;

/// A position in the kernel's log.
#[derive(Debug)]
pub struct KernelLog(File);

impl KernelLog {
    /// The end of the log. Panics without `/dev/kmsg`: a test that watches the log proves nothing then.
    pub fn end() -> Self {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("the flags of open(2) are an int");
        let file = File::options().read(true).custom_flags(flags).open("/dev/kmsg");
        let mut file =
            file.unwrap_or_else(|error| panic!("this test reads the kernel's log: /dev/kmsg: {error}"));
        file.seek(SeekFrom::End(0)).expect("seek to the end of the log");
        Self(file)
    }

    /// The errors and warnings of EROFS and overlayfs and the kernel's reports of its own faults since the last call.
    pub fn faults(&mut self) -> Vec<String> {
        let mut faults = Vec::new();
        // Each read returns one record; a record has at most 8 KiB (kernel, Documentation/ABI/testing/dev-kmsg).
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => faults.extend(fault(&String::from_utf8_lossy(&record[..length]))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return faults,
                // The log has overwritten the next record. The position is then that of the oldest one.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
                Err(error) => panic!("cannot read /dev/kmsg: {error}"),
            }
        }
    }
}

/// The text of a record, if it is a fault: `PRIORITY,SEQUENCE,TIME,FLAGS;TEXT`.
pub fn fault(record: &str) -> Option<String> {
    let (prefix, text) = record.split_once(';')?;
    let text = text.lines().next()?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    // The facility is in the upper bits.
    let is_severe = priority & 7 <= WARNING;
    let of_filesystem = is_severe && (text.starts_with("erofs") || text.starts_with("overlayfs"));
    let of_kernel = ["BUG:", "WARNING:", "Oops", "general protection", "kernel BUG at", "KASAN"]
        .iter()
        .any(|word| text.contains(word));
    let expected = OF_OTHER_TESTS.iter().any(|words| text.contains(words));
    ((of_filesystem && !expected) || of_kernel).then(|| text.to_owned())
}
