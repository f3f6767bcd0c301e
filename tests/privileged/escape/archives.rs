//! Archives and command lines with names, digests, paths and links that point outside.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::engines::EscapeFixture;
use support::case::Case;
use support::images::run;
use support::program::failure;
use support::{layout, text};

/// Writes a layout with one image and changes its entry in `index.json`.
fn layout_with(dir: &Path, change: impl FnOnce(&mut Value)) {
    let image: Case = text::image("1", text::layers("f etc/motd inside"));
    layout::write(dir, [&image]);
    let path = dir.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut index["manifests"][0]);
    fs::write(path, index.to_string()).unwrap();
}

/// Lists all paths below the directories.
fn names_below(dirs: &[&Path]) -> String {
    let dirs: Vec<&str> = dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    let mut names: Vec<String> =
        run("find", &[&dirs[..], &["-mindepth", "1"]].concat()).lines().map(str::to_owned).collect();
    names.sort();
    names.join("\n")
}

#[test]
fn names_and_tags_with_dot_dot_are_skipped_in_every_annotation() {
    let fixture = EscapeFixture::new();
    let (near, far) = (fixture.aim().near.to_owned(), fixture.aim().far.to_owned());
    let names = [
        "../x:1",
        "..:1",
        "../../x",
        "lab/../../x:1",
        "lab/..:1",
        "./x:1",
        "/x:1",
        "lab//x:1",
        "lab/x:../../y",
        "lab/x:..",
        "lab/x:.",
        "lab/x@../../y",
        "lab/x@sha256:../../y",
        ".",
        "..",
        "../..",
        "lab/x\n:1",
        "fixture\0/x:1",
        "fixture\\..\\x:1",
        "~/x:1",
        "lab/x:a/../b",
        "host:1/../x:1",
        "127.0.0.1:5000/../../x:1",
        "-rf",
        "--name",
    ];
    let names = names.map(str::to_owned).into_iter().chain([
        format!("../{near}/made:1"),
        format!("../../../{near}:1"),
        format!("{far}/made:1"),
        format!("lab/x:../../{near}"),
    ]);
    let before = names_below(&[fixture.mount.dir()]);
    for (number, name) in names.enumerate() {
        for key in ["org.opencontainers.image.ref.name", "io.containerd.image.name"] {
            let dir = fixture.program.dir().join(format!("layouts/{number}"));
            layout_with(&dir, |entry| entry["annotations"] = json!({key: name}));
            let output = fixture.program.run(&["load", dir.to_str().unwrap()]);
            fixture.assert_untouched(&name, "load");
            // Such an image has no name.
            let unnamed = String::from_utf8(output.stdout).unwrap().trim().to_owned();
            assert!(
                output.status.success() && unnamed.starts_with("unnamed@sha256:"),
                "{name:?} in {key}: {unnamed}"
            );
            fixture.program.ok(&["rm", &unnamed]);
            assert_eq!(names_below(&[fixture.mount.dir()]), before, "{name:?} in {key} appears in the mount");
            // An explicit name replaces the name in the archive.
            let loaded = fixture.program.ok(&["load", "--name", "lab/named:1", dir.to_str().unwrap()]);
            assert!(loaded.starts_with("lab/named@sha256:"), "{loaded}");
            fixture.assert_untouched(&name, "load under another name");
            fixture.program.ok(&["rm", &loaded]);
        }
    }
    fixture.finish();
}

#[test]
fn digests_with_dot_dot_are_refused_in_every_document() {
    let fixture = EscapeFixture::new();
    let (near, far) = (fixture.aim().near.to_owned(), fixture.aim().far.to_owned());
    let digests = [
        format!("sha256:../../../{near}/secret"),
        format!("sha256:{far}/secret"),
        format!("../../{near}/secret:0"),
        { format!("sha256:{:.<64}", format!("../../../../{near}/")) },
    ];
    for (number, digest) in digests.iter().enumerate() {
        let dir = fixture.program.dir().join(format!("layouts/{number}"));
        let load = |what: &str| {
            let output = fixture.program.run(&["load", "--name", "lab/x:1", dir.to_str().unwrap()]);
            fixture.assert_untouched(digest, what);
            let error = failure(&output, &[what, digest]);
            assert!(!error.contains(support::canary::SECRET), "{what} {digest}: {error}");
        };
        layout_with(&dir, |entry| entry["digest"] = digest.as_str().into());
        load("the digest of a manifest");
        // The digests of the configuration and of the layer in the manifest.
        for pointer in ["/config/digest", "/layers/0/digest"] {
            layout_with(&dir, |entry| {
                let blobs = dir.join("blobs/sha256");
                let old = blobs.join(&entry["digest"].as_str().unwrap()["sha256:".len()..]);
                let mut manifest: Value = serde_json::from_slice(&fs::read(old).unwrap()).unwrap();
                *manifest.pointer_mut(pointer).unwrap() = digest.as_str().into();
                let bytes = manifest.to_string();
                let new = support::images::sha256(bytes.as_bytes());
                fs::write(blobs.join(&new), &bytes).unwrap();
                entry["digest"] = format!("sha256:{new}").into();
                entry["size"] = bytes.len().into();
            });
            load(pointer);
        }
    }
    fixture.finish();
}

/// Replacements for a file of a layout: name, script and expected error. `$0` is the file, `$1` a directory outside.
const REPLACEMENTS: [(&str, &str, &str); 6] = [
    (
        "an absolute link to the outside",
        "mv \"$0\" \"$1/moved\"; ln -s \"$1/moved\" \"$0\"",
        "is a link that does not lead to a file inside the archive",
    ),
    (
        "a climbing link to the outside",
        "mv \"$0\" \"$1/moved\"; ln -s \"../../../../../../../../../..$1/moved\" \"$0\"",
        "is a link that does not lead to a file inside the archive",
    ),
    (
        "an absolute link to the inside",
        "mv \"$0\" \"$0.moved\"; ln -s \"$0.moved\" \"$0\"",
        "is a link that does not lead to a file inside the archive",
    ),
    (
        "a magic link",
        "rm \"$0\"; ln -s /proc/self/root/etc/passwd \"$0\"",
        "is a link that does not lead to a file inside the archive",
    ),
    ("a pipe", "rm \"$0\"; mkfifo \"$0\"", "not a regular file"),
    ("a device", "rm \"$0\"; mknod \"$0\" c 1 5", "not a regular file"),
];

#[test]
fn links_fifos_and_devices_in_a_layout_are_neither_followed_nor_opened() {
    let fixture = EscapeFixture::new();
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    for (what, script, reason) in REPLACEMENTS {
        for file in ["oci-layout", "index.json", "manifest", "config", "layer", "blobs", "blobs/sha256"] {
            // A directory can only be replaced by a link; pipes and devices have no entries to look up.
            let is_directory = file.starts_with("blobs");
            if is_directory && !what.contains("link to") {
                continue;
            }
            let dir =
                fixture.program.dir().join("layouts").join(format!("{what}-{file}").replace([' ', '/'], "-"));
            let mut digests = Vec::new();
            layout_with(&dir, |entry| {
                let digest = |of: &Value| of["digest"].as_str().unwrap()["sha256:".len()..].to_owned();
                let blobs = dir.join("blobs/sha256");
                let manifest: Value =
                    serde_json::from_slice(&fs::read(blobs.join(digest(entry))).unwrap()).unwrap();
                digests = vec![
                    ("manifest", digest(entry)),
                    ("config", digest(&manifest["config"])),
                    ("layer", digest(&manifest["layers"][0])),
                ];
            });
            let found = digests.iter().find(|(name, _)| *name == file);
            let path: PathBuf = match found {
                Some((_, digest)) => dir.join("blobs/sha256").join(digest),
                None => dir.join(file),
            };
            let _ = fs::remove_dir_all(outside.path().join("moved"));
            run("sh", &["-euc", script, path.to_str().unwrap(), outside.path().to_str().unwrap()]);
            let error = fixture.program.fails(&["load", "--name", "lab/x:1", dir.to_str().unwrap()]);
            assert!(error.contains(reason), "{file} as {what} should be refused with {reason:?}: {error}");
            assert!(!error.contains("root:"), "{file} as {what}: {error}");
            let _ = fs::remove_file(outside.path().join("moved"));
        }
    }
    fixture.finish();
}

/// The name, kind and target of a link.
type Link<'a> = (&'a str, tar::EntryType, &'a str);

/// Writes a `docker save` archive in the old format.
fn write_docker_archive(path: &Path, manifest: &Value, files: &[(&str, Vec<u8>)], links: &[Link<'_>]) {
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    let manifest = ("manifest.json", manifest.to_string().into_bytes());
    for (name, bytes) in files.iter().chain([&manifest]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    for (name, kind, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        builder.append_link(&mut header, name, target).unwrap();
    }
    builder.finish().unwrap();
}

#[test]
fn docker_archive_import_reads_only_archive_members() {
    let fixture = EscapeFixture::new();
    // The files outside are valid. They must be refused only because they are outside.
    let layer = text::layers("f etc/motd inside").remove(0);
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id.to_string()]},
    });
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::write(outside.path().join("layer.tar"), &layer.bytes).unwrap();
    fs::write(outside.path().join("config.json"), config.to_string()).unwrap();
    let outside = outside.path().to_str().unwrap();
    let climb = format!("../../../../../../../..{outside}");
    let dir = fixture.program.dir().join("archives");
    fs::create_dir(&dir).unwrap();
    let good = vec![("config.json", config.to_string().into_bytes()), ("layer.tar", layer.bytes.clone())];
    let load = |config: &str, layer: &str, links: &[Link<'_>]| {
        let path = dir.join("save.tar");
        let manifest =
            json!([{"Config": config, "RepoTags": ["../../x:1", "lab/saved:../../1"], "Layers": [layer]}]);
        write_docker_archive(&path, &manifest, &good, links);
        fixture.program.run(&["load", "--name", "lab/saved:1", path.to_str().unwrap()])
    };
    use tar::EntryType::{Link as HardLink, Symlink};
    // The invalid tags are skipped, and the archive is loaded.
    assert!(load("config.json", "layer.tar", &[]).status.success());
    let (absolute, climbing) = (format!("{outside}/layer.tar"), format!("{climb}/layer.tar"));
    let rows: [(&str, &str, &str, Vec<Link<'_>>); 9] = [
        ("an absolute layer", "config.json", &absolute, vec![]),
        ("a climbing layer", "config.json", &climbing, vec![]),
        ("an absolute config", &format!("{outside}/config.json"), "layer.tar", vec![]),
        ("a climbing config", &format!("{climb}/config.json"), "layer.tar", vec![]),
        ("a link to the outside", "config.json", "out", vec![("out", Symlink, &absolute)]),
        ("a climbing link", "config.json", "a/out", vec![("a/out", Symlink, &climbing)]),
        ("a hard link to the outside", "config.json", "out", vec![("out", HardLink, &absolute)]),
        ("a directory that is a link", "config.json", "d/layer.tar", vec![("d", Symlink, outside)]),
        ("links in a circle", "config.json", "a", vec![("a", Symlink, "b"), ("b", Symlink, "a")]),
    ];
    for (what, config, layer, links) in rows {
        let error = failure(&load(config, layer, &links), &["load", what]);
        assert!(error.contains("save.tar"), "{what}: {error}");
        fixture.assert_untouched(what, "load");
    }
    fixture.finish();
}

#[test]
fn commands_refuse_names_with_dot_dot() {
    let fixture = EscapeFixture::new();
    let image = text::load(&fixture.program, &text::image("1", text::layers("f etc/motd inside")));
    let digest = image.split_once('@').unwrap().1.to_owned();
    let (near, far) = (fixture.aim().near.to_owned(), fixture.aim().far.to_owned());
    let copy = fixture.program.dir().join("copy");
    let copy = copy.to_str().unwrap();
    let before = fixture.program.ok(&["images"]);
    for name in [
        format!("../{near}"),
        format!("{far}:1"),
        format!("lab/../{near}:1"),
        format!("lab/text:../../{near}"),
        "..".to_owned(),
        format!("lab/text@sha256:../../../{near}/secret"),
        format!("lab/text@../{digest}"),
        format!("../lab/text@{digest}"),
        "lab/text:.".to_owned(),
        "lab/text:..".to_owned(),
        "./lab/text:1".to_owned(),
        "lab/./text:1".to_owned(),
    ] {
        let calls: [&[&str]; 8] = [
            &["pull", &name],
            &["inspect", &name],
            &["path", &name],
            &["rm", &name],
            &["unpack", &name, copy],
            &["root", "create", &name],
            &["run", &name, "--", "true"],
            &["verify", &name],
        ];
        for call in calls {
            fixture.program.fails(call);
            fixture.assert_untouched(&name, call[0]);
        }
        let error = fixture.program.fails(&[
            "load",
            "--name",
            &name,
            fixture.program.dir().join("layouts/1").to_str().unwrap(),
        ]);
        assert!(!error.contains("panicked"), "{error}");
    }
    for id in ["..", ".", "../x", &format!("../../{near}"), &far, "a/b", "", "a\nb", "a:b", "a,b"] {
        for call in [
            &["root", "create", &image, "--engine", "overlay2", "--id", id][..],
            &["root", "remove", "--force", id],
        ] {
            fixture.program.fails(call);
            fixture.assert_untouched(id, call[1]);
        }
    }
    assert_eq!(fixture.program.ok(&["images"]), before);
    assert!(!Path::new(copy).exists());
    fixture.finish();
}

#[test]
fn unpack_writes_only_to_its_target_and_follows_no_existing_link() {
    let fixture = EscapeFixture::new();
    let image = text::load(
        &fixture.program,
        &text::image("1", text::layers("d dir \n f dir/inner x \n f secret x \n f link x")),
    );
    let at = |name: &str| fixture.program.dir().join(name);
    // The target is a link to the canary, a dangling link into it, or has the partial copy's name replaced by a link to it.
    symlink(fixture.aim().far, at("full")).unwrap();
    symlink(format!("{}/new", fixture.aim().far), at("dangling")).unwrap();
    symlink(fixture.aim().far, at(".copy.rcx-imagefs-partial-1")).unwrap();
    for place in ["full", "dangling"] {
        fixture.program.fails(&["unpack", &image, at(place).to_str().unwrap()]);
        fixture.assert_untouched(place, "unpack");
    }
    fixture.program.ok(&["unpack", &image, at("copy").to_str().unwrap()]);
    fixture.assert_untouched("a link with the name of an interrupted copy", "unpack");
    assert_eq!(fs::read_to_string(at("copy/secret")).unwrap(), "x");
    assert!(fs::symlink_metadata(at(".copy.rcx-imagefs-partial-1")).unwrap().is_symlink());
    fixture.finish();
}
