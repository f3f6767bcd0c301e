//! Merges lines into `/etc/passwd`, `/etc/group` and `/etc/hosts`. No I/O.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The name of the sandbox's user and group.
const USER: &str = "box";
/// The home directory of the user.
const HOME: &str = "/box";

/// Returns `passwd` with a line for the user; `None` if it has a line for this number.
pub(super) fn passwd(passwd: &[u8], uid: u32, gid: u32) -> Option<Vec<u8>> {
    let name = unused_name(passwd, uid)?;
    // With an empty fifth field, git refuses to make commits.
    Some(with_lines(passwd, format!("{name}:x:{uid}:{gid}:{name}:{HOME}:/bin/sh\n").as_bytes()))
}

/// Returns `group` with a line for the group; `None` if it has a line for this number.
pub(super) fn group(group: &[u8], gid: u32) -> Option<Vec<u8>> {
    let name = unused_name(group, gid)?;
    Some(with_lines(group, format!("{name}:x:{gid}:\n").as_bytes()))
}

/// Returns a name that no line has. `None` if a line has the number `id`: passwd(5) and group(5) have it in the third field.
fn unused_name(file: &[u8], id: u32) -> Option<String> {
    let fields = || file.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':'));
    let number = |field: &[u8]| str::from_utf8(field).ok()?.parse::<u32>().ok();
    if fields().any(|mut fields| fields.nth(2).and_then(number) == Some(id)) {
        return None;
    }
    let is_unused = |name: &String| !fields().any(|mut fields| fields.next() == Some(name.as_bytes()));
    [USER.to_owned(), format!("{USER}-{id}")].into_iter().find(is_unused)
}

/// A line of hosts(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostLine {
    address: IpAddr,
    names: Vec<String>,
    /// The line is omitted if the file names this host already.
    unless: String,
}

impl HostLine {
    /// Returns the lines that every root has, and one for `hostname`.
    pub(super) fn wanted(hostname: Option<&str>) -> Vec<Self> {
        let line = |address, names: &[&str], unless: &str| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            Self { address, names, unless: unless.to_owned() }
        };
        let localhost = "localhost";
        let mut lines = vec![
            line(Ipv4Addr::LOCALHOST.into(), &[localhost], localhost),
            line(Ipv6Addr::LOCALHOST.into(), &[localhost, "ip6-localhost", "ip6-loopback"], localhost),
        ];
        if let Some(name) = hostname {
            // As on Debian: the host's own name has an address of its own. The first name has a domain, because git makes the
            // address of a committer from it.
            let full = if name.contains('.') { name.to_owned() } else { format!("{name}.localdomain") };
            let names = if full == name { vec![name] } else { vec![&*full, name] };
            lines.push(line(Ipv4Addr::new(127, 0, 1, 1).into(), &names, name));
        }
        lines
    }
}

impl fmt::Display for HostLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\t{}", self.address, self.names.join(" "))
    }
}

/// Returns `image` with the lines of `host` and the lines that are wanted; `None` if it needs none of them.
///
/// The lines of the image come first: of several lines for a name, the first counts.
pub(super) fn hosts(image: &[u8], host: &[u8], wanted: &[HostLine]) -> Option<Vec<u8>> {
    let mut merged = with_lines(image, host);
    let missing = wanted.iter().filter(|line| !names(&merged, &line.unless));
    let missing: String = missing.map(|line| format!("{line}\n")).collect();
    merged = with_lines(&merged, missing.as_bytes());
    (merged != image).then_some(merged)
}

/// Returns whether a line of hosts(5) has the name `wanted`.
fn names(hosts: &[u8], wanted: &str) -> bool {
    let separator = |byte: &u8| byte.is_ascii_whitespace();
    hosts.split(|byte| *byte == b'\n').any(|line| {
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        let words = line.split(separator).filter(|word| !word.is_empty());
        words.skip(1).any(|name| name.eq_ignore_ascii_case(wanted.as_bytes()))
    })
}

/// Returns `file` with `lines` after its last line, which may lack its end.
fn with_lines(file: &[u8], lines: &[u8]) -> Vec<u8> {
    let end: &[u8] = if file.is_empty() || file.ends_with(b"\n") || lines.is_empty() { b"" } else { b"\n" };
    [file, end, lines].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(merged: Option<Vec<u8>>) -> String {
        merged.map_or("unchanged".to_owned(), |bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn user_and_group_get_a_line_unless_their_number_has_one() {
        let passwd = |file: &str| text(passwd(file.as_bytes(), 60_007, 60_008));
        let line = "box:x:60007:60008:box:/box:/bin/sh\n";
        for (file, expected) in [
            ("", line.to_owned()),
            ("root:x:0:0::/root:/bin/sh\n", format!("root:x:0:0::/root:/bin/sh\n{line}")),
            ("root:x:0:0::/root:/bin/sh", format!("root:x:0:0::/root:/bin/sh\n{line}")),
            ("me:x:60007:5::/:\n", "unchanged".to_owned()),
            ("me:x:60008:60007::/:\nx\n", format!("me:x:60008:60007::/:\nx\n{line}")),
            ("box:x:1:1::/:\n", "box:x:1:1::/:\nbox-60007:x:60007:60008:box-60007:/box:/bin/sh\n".to_owned()),
            ("box:x:1:\nbox-60007:x:2:\n", "unchanged".to_owned()),
        ] {
            assert_eq!(passwd(file), expected, "{file:?}");
        }
        assert_eq!(text(group(b"root:x:0:\n", 60_008)), "root:x:0:\nbox:x:60008:\n");
        assert_eq!(text(group(b"staff:x:60008:me\n", 60_008)), "unchanged");
        assert!(
            super::passwd(b"\xff\xfe:\xff:\xff\n", 1, 1).unwrap().ends_with(b"box:x:1:1:box:/box:/bin/sh\n")
        );
    }

    #[test]
    fn hosts_name_localhost_and_the_own_name_once() {
        let merged = |image: &str, host: &str, name| {
            text(hosts(image.as_bytes(), host.as_bytes(), &HostLine::wanted(name)))
        };
        let local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        assert_eq!(merged("", "", None), local);
        assert_eq!(merged("# 127.0.0.1 localhost\n10.0.0.1 localhostx # localhost", "", None), {
            format!("# 127.0.0.1 localhost\n10.0.0.1 localhostx # localhost\n{local}")
        });
        assert_eq!(merged("127.0.0.1 me LocalHost\n", "", None), "unchanged");
        assert_eq!(merged("127.0.0.1 localhost\n", "10.0.0.7 judge", None), {
            "127.0.0.1 localhost\n10.0.0.7 judge"
        });
        assert_eq!(merged("", "", Some("vm")), format!("{local}127.0.1.1\tvm.localdomain vm\n"));
        assert_eq!(merged("", "", Some("vm.example.org")), format!("{local}127.0.1.1\tvm.example.org\n"));
        assert_eq!(merged("127.0.0.1 localhost vm\n", "", Some("vm")), "unchanged");
        assert_eq!(merged("", "127.0.0.1 vm localhost\n", Some("vm")), "127.0.0.1 vm localhost\n");
    }
}
