//! Compares the mount with `umoci unpack`: two independent implementations must agree on every detail of an image.

use std::fs;
use std::path::Path;

use support::fixture::Fixture;
use support::images::{Images, run};
use support::trees;

/// The fewest files that the `app` image may have: comparing two nearly empty trees would prove nothing.
const FILES_OF_APP: usize = 8_000;

/// Pushes `image` with these options of skopeo, pulls it and compares its mount with the `app` image unpacked by umoci.
#[track_caller]
fn assert_mount_equals_umoci(image: &str, options: &[&str]) {
    let images = Images::make(&[image, "unpacked-app"]);
    let fixture = Fixture::new(&[]);
    let digest = fixture.registry.push(&images.layout().image(image), "lab/app:1", options);
    let pulled = fixture.pull("app");
    assert_eq!(pulled, fixture.registry.reference(&format!("lab/app@{digest}")));
    let mount = fixture.program.mount();
    trees::assert_equal(&mount.path(&pulled), &images.unpacked("app"), FILES_OF_APP);
    mount.stop();
}

#[test]
fn gzip_image_equals_umoci_unpack() {
    let layers = Images::make(&["app"]).layout().layers("app");
    assert!(layers.len() >= 5, "the comparison needs an image of at least 5 layers, not {}", layers.len());
    assert_mount_equals_umoci("app", &[]);
}

#[test]
fn zstd_image_equals_umoci_unpack() {
    assert_mount_equals_umoci("app-zstd", &[]);
}

#[test]
fn uncompressed_image_equals_umoci_unpack() {
    assert_mount_equals_umoci("app-plain", &[]);
}

#[test]
fn image_of_many_gzip_members_and_zstd_frames_equals_umoci_unpack() {
    assert_mount_equals_umoci("app-members", &[]);
}

#[test]
fn docker_schema_2_image_equals_umoci_unpack() {
    assert_mount_equals_umoci("app", &["--format", "v2s2"]);
}

/// The image has the same files in each sparse format of GNU tar and as plain files.
#[test]
fn sparse_files_in_every_format_equal_plain_files() {
    let fixture = Fixture::new(&["sparse"]);
    let pulled = fixture.pull("sparse");
    let mount = fixture.program.mount();
    let root = mount.path(&pulled);
    assert_eq!(fs::metadata(root.join("plain/many")).unwrap().len(), 30_000_000);
    for form in ["gnu", "0.0", "0.1", "1.0"] {
        trees::assert_same_content(&root.join(form), &root.join("plain"));
    }
    mount.stop();
}

#[test]
fn files_of_a_shared_layer_have_the_same_inodes_in_both_images() {
    use std::os::unix::fs::MetadataExt as _;
    let fixture = Fixture::new(&["python", "app"]);
    let roots = ["python", "app"].map(|image| fixture.pull(image));
    let mount = fixture.program.mount();
    let ino = |root: &str, path: &str| fs::symlink_metadata(mount.path(root).join(path)).unwrap().ino();
    for path in ["usr/bin/bash", "usr/bin/python3.11", "bin"] {
        assert_eq!(ino(&roots[0], path), ino(&roots[1], path), "{path}");
    }
    // Directories are not shared: a layer of `app` changes the link count of this one.
    assert_ne!(ino(&roots[0], "etc"), ino(&roots[1], "etc"), "directories belong to an image");
    mount.stop();
}

#[test]
fn programs_in_the_image_run_from_the_mount() {
    let fixture = Fixture::new(&["app"]);
    let pulled = fixture.pull("app");
    let mount = fixture.program.mount();
    let root = mount.path(&pulled).display().to_string();
    let code = "import numpy; print(int(numpy.arange(10).sum()))";
    assert_eq!(run("chroot", &[&root, "/usr/bin/python3", "-c", code]), "45\n");
    assert!(run("chroot", &[&root, "/usr/bin/gcc", "--version"]).starts_with("gcc "));
    mount.stop();
}

/// A comparison that could not fail would prove nothing.
#[test]
fn tree_comparison_detects_every_kind_of_difference() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let differs = |change: &dyn Fn(&Path)| {
        for root in [&one, &two] {
            let _ = fs::remove_dir_all(root);
            fs::create_dir_all(root.join("d")).unwrap();
            fs::write(root.join("d/f"), "text").unwrap();
            fs::write(root.join("g"), "text").unwrap();
            run(
                "touch",
                &["-d", "@1", &root.join("d/f").display().to_string(), &root.join("g").display().to_string()],
            );
        }
        change(&two);
        for path in ["g", "d/f", "d", "."] {
            for root in [&one, &two] {
                if !path.ends_with('f') && !path.ends_with('g') {
                    run("touch", &["-d", "@1", &root.join(path).display().to_string()]);
                }
            }
        }
        let compare = std::panic::AssertUnwindSafe(|| trees::assert_equal(&two, &one, 1));
        std::panic::catch_unwind(compare).is_err()
    };
    assert!(!differs(&|_| ()), "equal trees should compare as equal");
    let sh = |script: &'static str| {
        move |root: &Path| drop(run("sh", &["-euc", script, &root.display().to_string()]))
    };
    for script in [
        "rm $0/g",
        "touch $0/more",
        "chmod 600 $0/g",
        "chown 1:0 $0/g",
        "chown 0:1 $0/d",
        "touch -d @1.5 $0/g",
        "printf texT >$0/g; touch -d @1 $0/g",
        "setfattr -n user.a -v b $0/d/f",
        "setfattr -n user.a -v b $0/d",
        "rm $0/g; ln $0/d/f $0/g",
        "rm $0/g; mkdir $0/g",
        "rm $0/g; mknod $0/g c 1 3; touch -d @1 $0/g",
        "chmod 755 $0; chmod 700 $0",
    ] {
        assert!(differs(&sh(script)), "the comparison should detect: {script}");
    }
}
