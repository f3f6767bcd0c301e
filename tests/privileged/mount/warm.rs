//! What the kernel has seen once it does not ask for again: the daemon counts its requests.

use std::fs;
use std::path::{Path, PathBuf};

use support::docker_registry::DockerRegistry;
use support::images::{Images, run};
use support::program::Program;
use support::trees;

/// Requests of the given kinds that the daemon has had.
fn count(program: &Program, kinds: &[&str]) -> u64 {
    let status = program.json(&["status"]);
    let requests = status["requests"].as_object().expect("status tells the requests by kind");
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
fn warm_find_and_reread_of_a_thousand_files_ask_the_daemon_nothing() {
    let images = Images::make(&["app"]);
    let registry = DockerRegistry::start();
    let program = Program::new();
    registry.push_from(&images.layout(), "app", "app:1");
    let pulled = program.pull(&registry.reference("app:1"));
    let mount = program.mount();
    let root = mount.path(&pulled);
    let paths: Vec<PathBuf> = trees::paths(&root).into_iter().collect();
    let find = || run("find", &[root.to_str().unwrap(), "-printf", "%p %m %s %T@\n"]);
    let cold = find();
    read_thousand_files(&root, &paths);
    let kinds = ["READ", "OPEN", "LOOKUP"];
    assert!(
        count(&program, &["READ"]) > 100 && count(&program, &["LOOKUP", "READDIRPLUS"]) > 100,
        "counters count"
    );
    // A kernel that takes back memory, as one may at any moment, asks for what it has given up; so one round of a few has to
    // be without a request.
    let asked: Vec<u64> = (0..5)
        .map(|_| {
            let before = count(&program, &kinds);
            assert_eq!(find(), cold);
            read_thousand_files(&root, &paths);
            count(&program, &kinds) - before
        })
        .collect();
    assert!(asked.contains(&0), "requests in each round: {asked:?}");
    mount.stop();
}

#[test]
fn file_of_a_shared_layer_read_once_is_cached_for_every_image() {
    let images = Images::make(&["python", "app"]);
    let registry = DockerRegistry::start();
    let program = Program::new();
    let roots = ["python", "app"].map(|name| {
        registry.push_from(&images.layout(), name, &format!("{name}:1"));
        program.pull(&registry.reference(&format!("{name}:1")))
    });
    let mount = program.mount();
    let [one, two] = roots.map(|root| mount.path(&root));
    let files = ["usr/bin/bash", "usr/bin/perl", "usr/lib/os-release", "usr/bin/python3.11"];
    let bytes = files.map(|file| fs::read(one.join(file)).unwrap());
    let reads = count(&program, &["READ"]);
    assert!(reads > 0);
    for (file, bytes) in files.iter().zip(bytes) {
        assert!(fs::read(two.join(file)).unwrap() == bytes, "{file}");
    }
    assert_eq!(count(&program, &["READ"]), reads, "the second image's reads came to the daemon");
    mount.stop();
}
