//! Plain layers that `pull` and `load` write: the same bytes in one pass as in two, and nothing after a failure or a kill.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use support::child::wait_until;
use support::fixture::Fixture;
use support::program::Program;
use support::tmpfs::Tmpfs;

fn directory(program: &Program, name: &str) -> PathBuf {
    program.store().join("rcx-imagefs").join(name)
}

/// The names of the files in a directory, which may be missing, in order.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Compares all plain layers of two stores. Returns their number.
#[track_caller]
fn assert_same_plain_layers(one: &Program, other: &Program) -> usize {
    let (one, other) = (directory(one, "plain"), directory(other, "plain"));
    let all = names(&one);
    assert_eq!(all, names(&other));
    for name in &all {
        assert!(fs::read(one.join(name)).unwrap() == fs::read(other.join(name)).unwrap(), "{name}");
    }
    all.len()
}

#[test]
fn plain_layers_of_one_pass_equal_those_that_are_made_later() {
    let fixture = Fixture::new(&["small", "sparse", "app"]);
    let Fixture { images, registry, program } = &fixture;
    let later = Program::new();
    let all = ["small", "sparse", "app"];
    for image in all {
        assert_eq!(later.json(&["pull", &fixture.reference(image)])[0]["plain_layers"], 0);
    }
    for image in all {
        let reference = fixture.reference(image);
        let layers = images.layout().layers(image).len();
        let pulled = program.json(&["pull", "--plain", &reference]);
        assert_eq!(pulled[0]["plain_layers"], layers, "{image}");
        let mark = registry.mark();
        assert_eq!(later.json(&["pull", "--plain", &reference])[0]["plain_layers"], layers);
        assert_eq!(registry.downloads(mark), [], "nothing is fetched for a plain layer");
    }
    assert!(assert_same_plain_layers(program, &later) > 3);
    let loaded = Program::new();
    let copy = images.layout().copy_of("app");
    loaded.ok(&["load", "--plain", copy.layout().dir().to_str().unwrap()]);
    for name in names(&directory(&loaded, "plain")) {
        let (one, other) = (directory(&loaded, "plain").join(&name), directory(program, "plain").join(&name));
        assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{name}");
    }
    assert_eq!(names(&directory(&loaded, "plain")).len(), images.layout().layers("app").len());
    for program in [program, &later, &loaded] {
        let report = program.json(&["verify"]);
        assert_eq!(report["plain_layers"], names(&directory(program, "plain")).len());
        assert_eq!(report["plain_rebuilt"].as_array().map(Vec::len), Some(0));
        assert_eq!(
            (names(&directory(program, "tmp")).len(), report["problems"].as_array().unwrap().len()),
            (0, 0)
        );
    }
}

#[test]
fn configuration_makes_every_pull_and_load_plain_within_its_budget() {
    let fixture = Fixture::new(&["python", "small"]);
    let Fixture { images, program, .. } = &fixture;
    let config = program.dir().join("config.toml");
    let layers = images.layout().layers("python");
    fs::write(&config, "[erofs]\nplain = 'used'\n").unwrap();
    assert_eq!(program.json(&["pull", &fixture.reference("python")])[0]["plain_layers"], 0);
    fs::write(&config, "[erofs]\nplain = 'always'\nplain-budget = '3M'\n").unwrap();
    let pulled = program.run(&["pull", "--json", &fixture.reference("python")]);
    let err = String::from_utf8(pulled.stderr).unwrap();
    assert!(pulled.status.success() && err.contains("the budget of plain layers is 3145728 bytes"), "{err}");
    let bytes = |program: &Program| -> u64 {
        let kinds = program.json(&["df"])["kinds"].clone();
        let plain = kinds.as_array().unwrap().iter().find(|kind| kind["kind"] == "plain-layers").unwrap();
        plain["bytes"].as_u64().unwrap()
    };
    assert!(bytes(program) <= 3 << 20);
    fs::write(&config, "[erofs]\nplain = 'always'\n").unwrap();
    assert_eq!(program.json(&["pull", &fixture.reference("python")])[0]["plain_layers"], layers.len());
    let copy = images.layout().copy_of("small");
    let loaded = Program::new();
    fs::write(loaded.dir().join("config.toml"), "[erofs]\nplain = 'always'\n").unwrap();
    let path = copy.layout().dir().to_str().unwrap().to_owned();
    let shown = loaded.json(&["load", &path]);
    assert_eq!(shown[0]["plain_layers"], shown[0]["layers"]);
    let hex = |layer: &String| layer.strip_prefix("sha256:").unwrap().to_owned() + ".plain";
    assert!(layers.iter().all(|layer| directory(program, "plain").join(hex(layer)).exists()));
    let before = bytes(program);
    assert!(before > fixture.images.layout().layer_bytes("python"));
    let freed = program.json(&["gc", "--plain"]);
    assert_eq!(freed["plain_bytes"], before);
    assert_eq!((names(&directory(program, "plain")).len(), bytes(program)), (0, 0));
}

#[test]
fn verify_makes_a_damaged_plain_layer_anew_and_says_so() {
    let fixture = Fixture::new(&["small"]);
    let program = &fixture.program;
    program.ok(&["pull", "--plain", &fixture.reference("small")]);
    let plain = directory(program, "plain");
    let path = plain.join(&names(&plain)[0]);
    let intact = fs::read(&path).unwrap();
    for at in [700, intact.len() - 300] {
        let mut damaged = intact.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        let output = program.run(&["verify"]);
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "{out}{err}");
        let hex = path.file_stem().unwrap().to_str().unwrap();
        assert!(out.contains(&format!("rebuilt plain layer of sha256:{hex}\n")), "{out}");
        assert!(err.contains(&format!("plain layer of sha256:{hex}: it")), "{err}");
        assert!(fs::read(&path).unwrap() == intact);
    }
}

#[test]
fn disk_that_is_too_small_for_plain_layers_has_the_image_and_nothing_else() {
    let fixture = Fixture::new(&["python"]);
    let layout = fixture.images.layout();
    let blobs = layout.layer_bytes("python");
    let disk = Tmpfs::new(&format!("{}k", (blobs + (blobs / 3)) / 1024 + 4096));
    let program = Program::with_store(&disk.path().join("store"));
    fs::write(program.dir().join("config.toml"), "").unwrap();
    let output = program.run(&["pull", "--plain", &fixture.reference("python")]);
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{err}");
    assert!(err.contains("has no plain layer"), "{err}");
    assert_eq!(names(&directory(&program, "tmp")), [""; 0]);
    let size = |digest: &String| fs::metadata(layout.blob(digest)).unwrap().len();
    let largest = layout.layers("python").into_iter().max_by_key(size).unwrap();
    let hex = largest.strip_prefix("sha256:").unwrap();
    assert!(!directory(&program, "plain").join(format!("{hex}.plain")).exists());
    assert!(program.ok(&["verify"]).ends_with(": 0 problems"));
}

#[test]
fn killed_pull_leaves_no_part_of_a_plain_layer() {
    let fixture = Fixture::new(&["python"]);
    let program = &fixture.program;
    let reference = fixture.reference("python");
    let mut killed = 0;
    for mib in [1, 5, 20] {
        let mut command = program.command(&["pull", "--plain", &reference]);
        let mut pull = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let tmp = directory(program, "tmp");
        let writes = || {
            let plain = names(&tmp).into_iter().filter(|name| name.ends_with(".plain"));
            plain.filter_map(|name| fs::metadata(tmp.join(name)).ok()).any(|file| file.len() > mib << 20)
        };
        wait_until("a plain layer is written", || writes() || pull.try_wait().unwrap().is_some());
        if pull.try_wait().unwrap().is_none() {
            killed += 1;
            assert!(names(&directory(program, "plain")).len() < 3);
        }
        pull.kill().unwrap();
        pull.wait().unwrap();
    }
    assert!(killed > 0, "no pull was killed while it wrote a plain layer");
    let layers = fixture.images.layout().layers("python").len();
    assert_eq!(program.json(&["pull", "--plain", &reference])[0]["plain_layers"], layers);
    program.ok(&["gc"]);
    for left in ["tmp", "locks"] {
        assert!(names(&directory(program, left)).iter().all(|name| !name.contains(".plain")), "{left}");
    }
    let report = program.json(&["verify"]);
    assert_eq!(report["plain_rebuilt"].as_array().map(Vec::len), Some(0), "{report}");
}
