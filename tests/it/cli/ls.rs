//! `ls`.

use serde_json::{Value, json};

use super::{Fixture, keys};

const FILES: &str = "\
    d etc mode=750 uid=7 gid=12345
    f etc/hosts 127.0.0.1 mtime=1714979289.5
    f etc/shadow secret mode=640 gid=42
    l etc/link hosts
    l etc/up ../usr/bin
    c etc/null 1:3 mode=666
    p etc/pipe
    f usr/bin/su x mode=4755
    h usr/bin/other usr/bin/su
    l bin usr/bin
    l loop loop
    f odd\\x0aname x
    ";

#[test]
fn ls_shows_modes_owners_sizes_and_link_targets() {
    let fixture = Fixture::new();
    fixture.load("lab/a:1", FILES);
    let listed = "\
-rw-r--r-- 1 0  0   9 2024-05-06 07:08 hosts
lrwxrwxrwx 1 0  0   - 1970-01-01 00:00 link -> hosts
crw-rw-rw- 1 0  0 1:3 1970-01-01 00:00 null
prw-r--r-- 1 0  0   - 1970-01-01 00:00 pipe
-rw-r----- 1 0 42   6 1970-01-01 00:00 shadow
lrwxrwxrwx 1 0  0   - 1970-01-01 00:00 up -> ../usr/bin";
    for arguments in [&["ls", "lab/a:1:/etc"][..], &["ls", "lab/a:1", "/etc/"], &["ls", "lab/a:1", "etc"]] {
        assert_eq!(fixture.program.ok(arguments), listed, "{arguments:?}");
    }
    let root = fixture.program.ok(&["ls", "lab/a:1"]);
    let names: Vec<&str> = root.lines().map(|line| line.split_once(":00 ").unwrap().1).collect();
    assert_eq!(names, ["bin -> usr/bin", "etc", "loop -> loop", "odd\\nname", "usr"]);
    assert!(root.contains("drwxr-x--- 2 7 12345 "), "{root}");

    let file = fixture.program.json(&["ls", "lab/a:1:/etc/hosts"]);
    let all =
        ["device", "gid", "kind", "links", "mode", "mtime", "mtime_nsec", "name", "size", "target", "uid"];
    assert_eq!(keys(&file[0]), all);
    let expected = json!([{
        "name": "/etc/hosts", "kind": "file", "mode": "0644", "links": 1, "uid": 0, "gid": 0, "size": 9,
        "mtime": 1_714_979_289, "mtime_nsec": 500_000_000, "target": null, "device": null,
    }]);
    assert_eq!(file, expected);
}

#[test]
fn links_are_resolved_inside_the_image_and_the_last_one_only_before_a_slash() {
    let fixture = Fixture::new();
    fixture.load("lab/a:1", FILES);
    let list = |place: &str| fixture.program.json(&["ls", place]);
    let names = |listed: &Value| {
        listed.as_array().unwrap().iter().map(|file| file["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&list("lab/a:1:/bin/")), ["other", "su"]);
    assert_eq!(names(&list("lab/a:1:/etc/up/../../..")), names(&list("lab/a:1")));
    let link = list("lab/a:1:/bin");
    assert_eq!((&link[0]["kind"], &link[0]["target"]), (&json!("symlink"), &json!("usr/bin")));
    let linked = list("lab/a:1:/bin/su");
    assert_eq!((&linked[0]["mode"], &linked[0]["links"]), (&json!("4755"), &json!(2)));
    assert!(fixture.program.ok(&["ls", "lab/a:1:/bin/su"]).starts_with("-rwsr-xr-x 2 "));
}

#[test]
fn path_that_the_image_lacks_is_an_error_that_names_it() {
    let fixture = Fixture::new();
    fixture.load("lab/a:1", FILES);
    for (path, wanted) in [
        ("/etc/none", "the image has no file /etc/none"),
        ("/etc/hosts/x", "/etc/hosts is not a directory in the image"),
        ("/etc/hosts/", "/etc/hosts is not a directory in the image"),
        ("/loop/x", "cannot resolve /loop/x in the image: too many symbolic links"),
    ] {
        let output = fixture.program.run(&["ls", "--json", &format!("lab/a:1:{path}")]);
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(printed["error"]["code"], "no-file", "{path}");
        assert!(printed["error"]["message"].as_str().unwrap().ends_with(wanted), "{path}: {printed}");
    }
    let (error, _) = fixture.fails(&["ls", "lab/a:1:/etc", "usr"]);
    assert!(error.contains("has a path already"), "{error}");
}
