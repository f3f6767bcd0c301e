//! The engines that tests run with.

/// The engines whose roots share what they have of an image.
pub const SHARING: [&str; 3] = ["erofs", "fuse", "overlay2"];
/// All engines.
pub const ALL: [&str; 4] = ["erofs", "fuse", "overlay2", "unpack"];
/// All engines, each with the uppers that it treats differently.
pub const WITH_UPPERS: [(&str, &str); 9] = [
    ("erofs", "none"),
    ("erofs", "dir"),
    ("erofs", "tmpfs:1m"),
    ("fuse", "none"),
    ("fuse", "dir"),
    ("fuse", "tmpfs:1m"),
    ("overlay2", "none"),
    ("overlay2", "dir"),
    ("unpack", "dir"),
];
