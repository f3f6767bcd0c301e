//! The kernel caches names, attributes and content: repeated access sends no request to the daemon.

use std::fs;
use std::path::{Path, PathBuf};

use support::fixture::Fixture;
use support::images::run;
use support::program::Program;
use support::trees;

/// The number of requests of these kinds that the daemon has answered so far.
fn count(program: &Program, kinds: &[&str]) -> u64 {
    let status = program.json(&["status"]);
    let requests = status["requests"].as_object().expect("status reports the number of requests by kind");
    kinds.iter().filter_map(|kind| requests.get(*kind)).map(|count| count.as_u64().unwrap()).sum()
}

/// Reads the first thousand regular files below a directory.
fn read_thousand_files(root: &Path, paths: &[PathBuf]) {
    let files =
        paths.iter().map(|path| root.join(path)).filter(|path| path.symlink_metadata().unwrap().is_file());
    let files: Vec<PathBuf> = files.take(1000).collect();
    assert_eq!(files.len(), 1000);
    for path in files {
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn cached_find_and_reread_of_a_thousand_files_send_no_request() {
    let fixture = Fixture::new(&["app"]);
    let program = &fixture.program;
    let pulled = fixture.pull("app");
    let mount = program.mount();
    let root = mount.path(&pulled);
    let paths: Vec<PathBuf> = trees::paths(&root).into_iter().collect();
    let find = || run("find", &[root.to_str().unwrap(), "-printf", "%p %m %s %T@\n"]);
    let cold = find();
    read_thousand_files(&root, &paths);
    let kinds = ["READ", "OPEN", "LOOKUP"];
    assert!(
        count(program, &["READ"]) > 100 && count(program, &["LOOKUP", "READDIRPLUS"]) > 100,
        "the first round should send requests of all kinds"
    );
    // The kernel may reclaim cached pages and entries at any moment, so only one of the rounds must send no request.
    let requests: Vec<u64> = (0..5)
        .map(|_| {
            let before = count(program, &kinds);
            assert_eq!(find(), cold);
            read_thousand_files(&root, &paths);
            count(program, &kinds) - before
        })
        .collect();
    assert!(requests.contains(&0), "requests in each round: {requests:?}");
    mount.stop();
}

#[test]
fn file_in_a_shared_layer_is_cached_for_every_image_after_one_read() {
    let fixture = Fixture::new(&["python", "app"]);
    let program = &fixture.program;
    let roots = ["python", "app"].map(|image| fixture.pull(image));
    let mount = program.mount();
    let [one, two] = roots.map(|root| mount.path(&root));
    let files = ["usr/bin/bash", "usr/bin/perl", "usr/lib/os-release", "usr/bin/python3.11"];
    let bytes = files.map(|file| fs::read(one.join(file)).unwrap());
    let reads = count(program, &["READ"]);
    assert!(reads > 0);
    for (file, bytes) in files.iter().zip(bytes) {
        assert!(fs::read(two.join(file)).unwrap() == bytes, "{file}");
    }
    assert_eq!(count(program, &["READ"]), reads, "reading the second image sent requests to the daemon");
    mount.stop();
}
