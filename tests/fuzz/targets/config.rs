//! The configuration file: known keys with values of every type, damaged TOML, and random text.
//!
//! Property: the file is accepted, or refused with a non-empty message of one line.

use rcx_imagefs::cli::check_config;

use crate::input::Input;

const KEYS: [&str; 27] = [
    "store",
    "run-dir",
    "default-registry",
    "plain-http",
    "platform",
    "engine",
    "threads",
    "cache-mib",
    "read-ahead-kib",
    "upper-dir",
    "upper",
    "inodes",
    "sandbox",
    "box-ids",
    "bwrap-user",
    "path",
    "mountpoint",
    "writable",
    "default",
    "7",
    "10-19",
    "mount",
    "root",
    "run",
    "isolate",
    "images",
    "unknown",
];

const VALUES: [&str; 30] = [
    "'/s'",
    "'reg.example:5000'",
    "['a:1']",
    "'linux/arm64'",
    "'fuse'",
    "'overlay2'",
    "3",
    "0",
    "-1",
    "64",
    "18446744073709551615",
    "'tmpfs:64M'",
    "'dir:1G'",
    "'dir:99999999999999T'",
    "'none'",
    "'isolate'",
    "'bwrap'",
    "'5-7'",
    "'9-1'",
    "'1000:5'",
    "'-1:4294967296'",
    "true",
    "'a'",
    "'b:1'",
    "''",
    "{}",
    "[]",
    "1979-05-27",
    "nan",
    "\"\\u0000\"",
];

/// Runs the target on one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let text = match input.byte() % 3 {
        0 => input.rest().to_vec(),
        1 => {
            let mut changes = Input::new(input.bytes(24));
            let mut text = file(&mut input).into_bytes();
            changes.mutate(&mut text);
            text
        }
        _ => file(&mut input).into_bytes(),
    };
    let text = String::from_utf8_lossy(&text);
    if let Err(error) = check_config(&text) {
        let message = format!("{error:#}");
        assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
    }
}

fn file(input: &mut Input<'_>) -> String {
    const TABLES: [&str; 7] =
        ["[mount]", "[root]", "[run]", "[isolate]", "[isolate.images]", "[unknown]", "[[mount]]"];
    let mut text = String::new();
    while !input.is_empty() && text.len() < 3000 {
        match input.below(16) {
            0 => text += input.pick(&TABLES),
            1 => text += &String::from_utf8_lossy(input.chunk()),
            2 => text += &format!("{} = '{}'", input.pick(&KEYS), String::from_utf8_lossy(input.chunk())),
            _ => text += &format!("{} = {}", input.pick(&KEYS), input.pick(&VALUES)),
        }
        text.push('\n');
    }
    text
}
