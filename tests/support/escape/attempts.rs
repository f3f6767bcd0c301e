//! The attempts, each as the layers of an image.
//!
//! `{far}` is the absolute path of a canary, `{up}` the same path after many `..`. A line with `{near}` is expanded to lines with an
//! increasing number of `..` before the name of a canary.

use Outcome::{Kept, Refused};

/// The expected result of an attempt.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// The image is accepted, and these paths are inside its tree.
    Kept(&'static [&'static str]),
    /// The image is refused with this text in the error.
    Refused(&'static str),
}

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Also the tag of the image.
    pub name: &'static str,
    pub layers: &'static str,
    pub outcome: Outcome,
}

const fn attempt(name: &'static str, layers: &'static str, outcome: Outcome) -> Attempt {
    Attempt { name, layers, outcome }
}

/// All attempts.
pub fn all() -> impl Iterator<Item = &'static Attempt> {
    [DOT_DOT, THROUGH_LINKS, SWAPPED, ATTRIBUTES, ROOT, HARD_LINKS, SPECIAL, PLACES, NAMES]
        .into_iter()
        .flatten()
}

/// The attempts whose image is accepted.
pub fn kept() -> impl Iterator<Item = &'static Attempt> {
    all().filter(|attempt| matches!(attempt.outcome, Kept(_)))
}

/// The accepted attempts that depend on the sandbox and its root, not only on the tree.
pub fn about_the_sandbox() -> impl Iterator<Item = &'static Attempt> {
    [THROUGH_LINKS, SPECIAL, PLACES]
        .into_iter()
        .flatten()
        .filter(|attempt| matches!(attempt.outcome, Kept(_)))
}

const NOT_A_DIRECTORY: Outcome = Refused("entry for the root is not a directory");

pub const DOT_DOT: &[Attempt] = &[
    attempt("dot-dot-file", "f {near}/secret x \n f {up}/secret x", Kept(&["{near}/secret", "{far}/secret"])),
    attempt("dot-dot-new-file", "f {near}/new{n} x \n f {up}/new x", Kept(&["{near}/new{n}", "{far}/new"])),
    attempt(
        "dot-dot-directory",
        "d {near} mode=700 uid=1 gid=1 mtime=5 \n d {up} mode=0 uid=1 xattr.trusted.canary=gone",
        Kept(&["{near}", "{far}"]),
    ),
    attempt(
        "dot-dot-symlink",
        "l {near}/link{n} x \n l {up}/link x",
        Kept(&["{near}/link{n}", "{far}/link"]),
    ),
    attempt("dot-dot-hard-link", "f x x \n h {near}/hard{n} x \n h {up}/secret x", Kept(&["{near}/hard{n}"])),
    attempt("dot-dot-device", "c {near}/zero{n} 1:5 \n p {up}/fifo", Kept(&["{near}/zero{n}", "{far}/fifo"])),
    attempt(
        "dot-dot-behind-a-name",
        "d a/b \n f a/{near}/secret x \n f a/b/{up}/secret x",
        Kept(&["{near}/secret", "{far}/secret"]),
    ),
    attempt("dot-dot-whiteout", "f kept \n --- \n w {near}/secret \n w {up}/secret", Kept(&["kept"])),
    attempt("dot-dot-opaque", "f kept \n --- \n o {near} \n o {up} \n o ../kept", Kept(&["kept"])),
    attempt(
        "absolute-file",
        "f {far}/secret x \n f //{far}/new x \n f /./{far}//x x",
        Kept(&["{far}/secret"]),
    ),
    attempt("absolute-directory", "d {far} mode=700 uid=5 \n d {far}/dir mode=0", Kept(&["{far}/dir"])),
    attempt("absolute-whiteout", "f kept \n --- \n w {far}/secret \n o {far}", Kept(&["kept"])),
    attempt(
        "dot-dot-in-a-long-name",
        "pax path=/../../../../../../../{far}/pax \n m 0 short data=x \n m L ././@LongLink data={up}/long\\x00 \n m 0 short data=x",
        Kept(&["{far}/pax", "{far}/long"]),
    ),
    attempt("dot-dot-in-a-prefix", "m 0 {near} prefix=a/../.. data=x", Kept(&["{near}"])),
];

pub const THROUGH_LINKS: &[Attempt] = &[
    attempt("absolute-link", "l a {far} \n f a/secret x", Kept(&["a", "{far}/secret"])),
    attempt(
        "absolute-link-below",
        "l a {far} \n --- \n f a/secret x \n d a/made",
        Kept(&["{far}/secret", "{far}/made"]),
    ),
    attempt("climbing-link", "l a {up} \n --- \n f a/secret x", Kept(&["{far}/secret"])),
    attempt("climbing-links-near-by", "l a{n} {near} \n --- \n f a{n}/made x", Kept(&["{near}/made"])),
    attempt(
        "chain-of-links",
        "l a b \n l b c/d \n l c / \n l d {up} \n f a/secret x",
        Kept(&["{far}/secret"]),
    ),
    attempt(
        "link-to-the-root",
        "l a / \n l b ../../.. \n f a{far}/secret x \n f b{far}/new x",
        Kept(&["{far}/secret"]),
    ),
    attempt(
        "link-to-a-link-in-the-canary",
        "l a {far}/link \n l b {far}/dir/../secret \n f a x \n f b x",
        Kept(&["a", "b"]),
    ),
    attempt(
        "link-to-a-directory-that-is-a-link-on-the-host",
        "l a {far}/around \n l b {near}/around \n l c {far}/around/../dir \n f a/inner x \n f b/x x \n f c/y y",
        Kept(&["{far}/around/inner", "{near}/around/x", "{far}/dir/y"]),
    ),
    attempt(
        "marker-through-a-link-of-the-host",
        "f {far}/around/secret x \n f {far}/around/kept x \n l a {far}/around \n --- \n w a/secret \n h b a/kept",
        Kept(&["{far}/around/kept", "b"]),
    ),
    attempt(
        "magic-links",
        "l a /proc/self/root \n l b /proc/self/cwd \n l c /dev/fd \n f a{far}/secret x \n f b/x x",
        Kept(&["proc/self/root{far}/secret", "proc/self/cwd/x"]),
    ),
    attempt(
        "link-in-the-middle",
        "d a \n l a/b {far} \n --- \n f a/b/dir/inner x \n l a/b/secret y",
        Kept(&["{far}/dir/inner"]),
    ),
    attempt(
        "whiteout-through-a-link",
        "l a {far} \n l b {up} \n --- \n w a/secret \n w b/link",
        Kept(&["a", "b"]),
    ),
    attempt(
        "opaque-through-a-link",
        "l a {far} \n l b {up} \n --- \n o a \n o b \n f a/x",
        Kept(&["a", "{far}/x"]),
    ),
    attempt(
        "link-of-another-name",
        "l a {far} \n h b a \n --- \n f b/secret x",
        Kept(&["a", "b", "{far}/secret"]),
    ),
    attempt(
        "device-through-a-link",
        "l a {far} \n --- \n p a/fifo \n c a/zero 1:5",
        Kept(&["{far}/fifo", "{far}/zero"]),
    ),
];

pub const SWAPPED: &[Attempt] = &[
    attempt(
        "directory-then-link",
        "d a \n f a/x x \n --- \n l a {far} \n --- \n f a/secret x",
        Kept(&["a", "{far}/secret"]),
    ),
    attempt(
        "swapped-within-a-layer",
        "d a \n f a/x x \n l a {far} \n f a/secret x",
        Kept(&["a", "{far}/secret"]),
    ),
    attempt(
        "swapped-by-a-whiteout",
        "d a \n f a/x \n --- \n w a \n l a {up} \n f a/secret x",
        Kept(&["a", "{far}/secret"]),
    ),
    attempt(
        "swapped-below-an-opaque",
        "d a/b \n --- \n o a \n l a/b {far} \n f a/b/secret x",
        Kept(&["a/b", "{far}/secret"]),
    ),
    attempt(
        "grandparent-swapped",
        "d a/b/dir \n --- \n l a/b {far} \n --- \n f a/b/dir/inner x",
        Kept(&["{far}/dir/inner"]),
    ),
    attempt(
        "link-then-directory-then-link",
        "l a {far} \n --- \n d a mode=700 \n f a/in x \n --- \n l a {up} \n f a/in y",
        Kept(&["{far}/in"]),
    ),
    attempt("file-then-link", "f a x \n --- \n l a {far}/secret \n --- \n f a y", Kept(&["a"])),
    attempt(
        "swapped-to-and-fro",
        "l a {far} \n f a/one x \n d a \n f a/two x \n l a {far} \n f a/three x",
        Kept(&["{far}/one", "{far}/three"]),
    ),
];

pub const ATTRIBUTES: &[Attempt] = &[
    attempt(
        "attributes-of-a-link-to-a-file",
        "l a {far}/secret mode=4777 uid=1000 gid=1000 mtime=7 xattr.trusted.canary=gone",
        Kept(&["a"]),
    ),
    attempt(
        "attributes-of-a-link-to-a-directory",
        "l a {far} uid=1000 gid=1000 mtime=7 xattr.trusted.canary=gone \n l b {near} uid=3 mtime=1",
        Kept(&["a"]),
    ),
    attempt(
        "attributes-of-a-hard-link-to-a-link",
        "l a {far}/secret \n h b a mode=4777 uid=5 mtime=7",
        Kept(&["a", "b"]),
    ),
    attempt(
        "attributes-through-a-parent",
        "l a {far} \n --- \n d a/dir mode=700 uid=7 mtime=9 xattr.trusted.canary=gone",
        Kept(&["{far}/dir"]),
    ),
    attempt(
        "attributes-of-a-directory-that-was-a-link",
        "l a {far} \n --- \n d a mode=700 uid=3 mtime=9 xattr.trusted.canary=gone",
        Kept(&["a"]),
    ),
    attempt(
        "attributes-of-a-link-that-was-a-directory",
        "d a mode=700 uid=3 \n --- \n l a {far} uid=4 mtime=9",
        Kept(&["a"]),
    ),
    attempt(
        "attributes-of-the-root",
        "d / mode=0 uid=12345 gid=12345 mtime=9 \n d .. mode=700 uid=5 \n d ../.. mode=755",
        Kept(&[""]),
    ),
    attempt(
        "acl-through-a-link",
        "l a {far}/secret xattr.system.posix_acl_access=\\x02\\x00\\x00\\x00",
        Kept(&["a"]),
    ),
];

pub const ROOT: &[Attempt] = &[
    attempt("root-as-a-link", "f a \n --- \n l / {far}", NOT_A_DIRECTORY),
    attempt("root-as-a-link-by-a-dot", "l . {far} \n f x", NOT_A_DIRECTORY),
    attempt("root-as-a-link-by-slash-dot", "l /. {up} \n f x", NOT_A_DIRECTORY),
    attempt("root-as-a-link-by-dot-dot", "l x/.. {far} \n f x", NOT_A_DIRECTORY),
    attempt("root-as-a-link-above", "l ../.. {far} \n f x", NOT_A_DIRECTORY),
    // Old tars store directories in this form.
    attempt("root-as-an-empty-file-with-a-slash", "m 0 / mode=755 uid=5 data= \n f x", Kept(&["x"])),
    attempt("root-as-a-file-with-data", "f / x", Refused("has a name that ends in `/`")),
    attempt("root-as-a-file-by-a-dot", "f ./. x", NOT_A_DIRECTORY),
    attempt("root-as-a-hard-link", "f a x \n h /. a", NOT_A_DIRECTORY),
    attempt("root-as-a-device", "b . 8:0", NOT_A_DIRECTORY),
    attempt("root-as-a-pipe", "p /", NOT_A_DIRECTORY),
    attempt("root-as-a-link-by-a-long-name", "pax path=/ linkpath={far} \n m 2 x link=y", NOT_A_DIRECTORY),
    attempt("whiteout-of-the-root", "f a \n --- \n m 0 .wh.. data=", Refused(".wh.")),
    attempt("whiteout-of-what-is-above", "f a \n --- \n m 0 .wh... data=", Refused(".wh.")),
    attempt(
        "root-emptied-then-filled",
        "f a \n --- \n o / \n l a {far} \n f a/secret x",
        Kept(&["a", "{far}/secret"]),
    ),
];

pub const HARD_LINKS: &[Attempt] = &[
    attempt("hard-link-to-the-outside", "h a {far}/secret", Refused("hard link to")),
    attempt("hard-link-that-climbs", "h a {up}/secret", Refused("hard link to")),
    attempt("hard-link-near-by", "h a ../../secret", Refused("hard link to")),
    attempt("hard-link-through-a-link", "l d {far} \n h a d/secret", Refused("hard link to")),
    attempt("hard-link-through-a-link-below", "l d {up} \n --- \n h a d/secret", Refused("hard link to")),
    attempt(
        "hard-link-through-a-magic-link",
        "l d /proc/self/root \n h a d{far}/secret",
        Refused("hard link to"),
    ),
    attempt(
        "hard-link-to-the-hosts-passwords",
        "h a /etc/shadow \n h b ../../../../etc/shadow",
        Refused("hard link to"),
    ),
    attempt("hard-link-to-a-directory", "l d {far} \n h a d/dir", Refused("hard link to")),
    attempt("hard-link-to-a-link", "l s {far}/secret \n h a s \n --- \n f a x", Kept(&["a", "s"])),
    attempt(
        "hard-link-to-a-link-then-written-through",
        "l s {far} \n h a s \n --- \n f a/secret x \n f s/new x",
        Kept(&["{far}/secret"]),
    ),
    attempt("hard-link-by-a-long-name", "pax linkpath={up}/secret \n m 1 a link=x", Refused("hard link to")),
];

pub const SPECIAL: &[Attempt] = &[
    attempt("disks-and-memory", "b disk 8:0 mode=666 \n b vda 254:0 mode=666 \n c mem 1:1 mode=666 \n c kmsg 1:11 mode=666", Kept(&["disk", "mem"])),
    attempt("whiteout-device", "f a \n --- \n c a 0:0", Refused("0:0")),
    attempt(
        "metadata-of-overlays",
        "d a xattr.trusted.overlay.redirect={far} xattr.user.overlay.redirect={far} xattr.trusted.overlay.opaque=y
         f b x xattr.trusted.overlay.metacopy= xattr.trusted.overlay.redirect={far}/secret
         d c xattr.trusted.overlay.origin=x xattr.trusted.overlay.impure=y",
        Kept(&["a", "b", "c"]),
    ),
    attempt("pipes-for-files-of-the-system", "p etc/passwd \n p etc/group \n p etc/ld.so.cache \n p etc/resolv.conf", Kept(&["etc/passwd"])),
    attempt("devices-for-files-of-the-system", "c etc/passwd 1:5 \n c etc/group 1:9 \n b etc/hosts 8:0", Kept(&["etc/passwd"])),
    attempt("links-for-files-of-the-system", "l etc/passwd {far}/secret \n l etc/group {up}/secret \n l etc/hosts {far}/fifo", Kept(&["etc/passwd"])),
    attempt("set-id-bits", "f a x mode=6777 \n d b mode=7777 \n l c {far}/program mode=6777", Kept(&["a", "b"])),
];

pub const PLACES: &[Attempt] = &[
    attempt(
        "places-as-links",
        "l box {far} \n l dev {far} \n l proc {far} \n l sys {far} \n --- \n w tmp \n w etc \n l tmp {far} \n l etc {far}",
        Kept(&[]),
    ),
    attempt(
        "places-as-climbing-links",
        "l box {up} \n l dev {up} \n l proc {up} \n l sys {up} \n --- \n w tmp \n w etc \n l tmp {up} \n l etc {up}",
        Kept(&[]),
    ),
    attempt(
        "places-as-links-to-each-other",
        "l box /dev \n l dev /proc \n l proc /sys \n l sys /box \n --- \n w tmp \n w etc \n l tmp /proc/self/root{far} \n l etc /box",
        Kept(&[]),
    ),
    attempt(
        "places-as-files",
        "f box x \n f dev x \n f proc x \n f sys x \n --- \n w tmp \n f tmp x \n f etc x",
        Kept(&[]),
    ),
    attempt(
        "places-as-pipes",
        "p box \n p dev \n p proc \n p sys \n --- \n w tmp \n p tmp \n w etc \n p etc",
        Kept(&[]),
    ),
    attempt(
        "places-as-devices",
        "c box 1:5 \n c dev 1:5 \n b proc 8:0 \n b sys 8:0 \n --- \n w tmp \n c tmp 1:9",
        Kept(&[]),
    ),
    attempt(
        "places-with-links-in-them",
        "l box/planted {far}/secret \n l dev/null {far}/secret \n l dev/shm {far} \n l proc/self {far} \n l tmp/planted {far}/secret",
        Kept(&[]),
    ),
    attempt(
        "places-that-are-closed",
        "d box mode=0 uid=5 \n d dev mode=0 \n d proc mode=0 \n d tmp mode=0 uid=5",
        Kept(&[]),
    ),
];

pub const NAMES: &[Attempt] = &[
    attempt(
        "newlines-and-tabs",
        "f a\\nb x \n f \\n x \n f \\t x \n d d\\n\\t \n f d\\n\\t/\\r x",
        Kept(&["a\nb", "\n", "d\n\t/\r"]),
    ),
    attempt(
        "colons-commas-and-backslashes",
        "f a:b x \n f a,b x \n f a\\\\b x \n d c:\\\\,d \n f c:\\\\,d/e: x",
        Kept(&["a:b", "a,b", "a\\b", "c:\\,d/e:"]),
    ),
    attempt(
        "options-of-a-mount",
        "d lowerdir\\x3d{far}:,upperdir\\x3d{far},x \n f x,rw,suid,dev x \n d a:b/c:d",
        Kept(&["a:b/c:d"]),
    ),
    attempt(
        "options-of-a-program",
        "f -rf x \n f --help x \n d -- \n f --/-exec x \n f @x x",
        Kept(&["-rf", "--/-exec"]),
    ),
    attempt(
        "words-of-a-shell",
        "f $(touch${IFS}x) x \n f `id` x \n f a;b x \n f a|b x \n f * x \n f %s%n x \n f ~ x",
        Kept(&["`id`", "a;b", "*"]),
    ),
    attempt(
        "bytes-that-are-no-text",
        "f \\xff\\xfe x \n f \\x01\\x1b[2J x \n f \\xe2\\x80\\xae x \n d \\x20 \n f \\x20/\\x20\\x20 x",
        Kept(&["\u{1}\u{1b}[2J", " /  "]),
    ),
    attempt(
        "names-of-dots",
        "f ... x \n f .... x \n d ..a \n f ..a/x x \n f a.. x",
        Kept(&["...", "..a", "a.."]),
    ),
    attempt(
        "odd-names-as-links",
        "l a\\nb {far} \n l a:b {far} \n l a\\\\b {up} \n --- \n f a\\nb/one x \n f a:b/two x \n f a\\\\b/three x",
        Kept(&["{far}/one", "{far}/two", "{far}/three"]),
    ),
    attempt(
        "odd-names-as-targets",
        "l a {far}\\n \n l b {far}:secret \n l c \\n{far} \n f a/x x",
        Kept(&["a", "b", "c"]),
    ),
];
