//! `diff`.

use serde_json::{Value, json};

use super::{Fixture, keys};

const OLD: &str = "\
    d etc mtime=5
    f etc/same content
    f etc/longer a
    f etc/changed 12345
    f etc/mode x
    f etc/owner x uid=7
    l etc/link a
    c etc/device 1:3
    f etc/gone x
    d etc/old
    f etc/old/below x
    f etc/becomes-a-directory x
    d untouched
    f untouched/file x
    f xattr x
    ";

const NEW: &str = "\
    d etc mtime=6
    f etc/same content mtime=9
    f etc/longer ab
    f etc/changed 12346
    f etc/mode x mode=600
    f etc/owner x
    l etc/link b
    c etc/device 1:5
    d etc/new
    f etc/new/below x
    f etc/becomes-a-directory/now x
    d untouched
    f untouched/file x
    f xattr x xattr.user.a=b
    ";

#[test]
fn diff_prints_added_changed_and_deleted_paths_as_docker_does() {
    let fixture = Fixture::new();
    fixture.load("lab/a:1", OLD);
    fixture.load("lab/b:1", NEW);
    let expected = "\
C /etc
C /etc/becomes-a-directory
A /etc/becomes-a-directory/now
C /etc/changed
C /etc/device
D /etc/gone
C /etc/link
C /etc/longer
C /etc/mode
A /etc/new
A /etc/new/below
D /etc/old
C /etc/owner
C /xattr";
    assert_eq!(fixture.program.ok(&["diff", "lab/a:1", "lab/b:1"]), expected);
    let items = fixture.program.json(&["diff", "lab/a:1", "lab/b:1"]);
    assert_eq!(keys(&items[0]), ["change", "parts", "path"]);
    let parts = |path: &str| {
        let item = items.as_array().unwrap().iter().find(|item| item["path"] == path);
        item.map(|item| (item["change"].clone(), item["parts"].clone()))
    };
    for (path, change, expected) in [
        ("/etc", "changed", json!([])),
        ("/etc/changed", "changed", json!(["content"])),
        ("/etc/longer", "changed", json!(["content"])),
        ("/etc/mode", "changed", json!(["mode"])),
        ("/etc/owner", "changed", json!(["owner"])),
        ("/etc/link", "changed", json!(["target"])),
        ("/etc/device", "changed", json!(["device"])),
        ("/etc/becomes-a-directory", "changed", json!(["type"])),
        ("/etc/new/below", "added", json!([])),
        ("/etc/old", "deleted", json!([])),
        ("/xattr", "changed", json!(["xattrs"])),
    ] {
        assert_eq!(parts(path), Some((json!(change), expected)), "{path}");
    }
}

#[test]
fn times_count_only_when_asked_for_and_equal_images_have_no_difference() {
    let fixture = Fixture::new();
    fixture.load("lab/a:1", "d etc mtime=5\nf etc/a x mtime=7");
    fixture.load("lab/b:1", "d etc mtime=6\nf etc/a x mtime=8");
    assert_eq!(fixture.program.ok(&["diff", "lab/a:1", "lab/b:1"]), "");
    assert_eq!(fixture.program.ok(&["diff", "--times", "lab/a:1", "lab/b:1"]), "C /etc\nC /etc/a");
    assert_eq!(fixture.program.json(&["diff", "--times", "lab/a:1", "lab/a:1"]), json!([]));
}

#[test]
fn damaged_layer_is_an_error_and_never_a_difference() {
    let fixture = Fixture::new();
    let old = fixture.load("lab/a:1", "f a 12345");
    fixture.load("lab/b:1", "f a 54321");
    fixture.damage(&fixture.layer(&old, 0));
    let (error, _) = fixture.fails(&["diff", "lab/a:1", "lab/b:1"]);
    assert!(error.starts_with("diff lab/a:1 lab/b:1: blob sha256:"), "{error}");
    let output = fixture.program.run(&["diff", "lab/a:1", "lab/b:1", "--json"]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["error"]["code"], "damaged");
}
