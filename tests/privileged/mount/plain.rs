//! Plain layers that the daemon makes of the layers that are used.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use support::child::wait_until;
use support::fixture::Fixture;

#[test]
fn daemon_makes_plain_layers_of_used_layers_alone_and_only_if_the_configuration_says_so() {
    let fixture = Fixture::new(&["python"]);
    let program = &fixture.program;
    let pulled = fixture.pull("python");
    let layers = fixture.images.layout().layers("python");
    let hex = |layer: usize| layers[layer].strip_prefix("sha256:").unwrap().to_owned();
    let plain = |layer: usize| program.store().join("rcx-imagefs/plain").join(hex(layer) + ".plain");

    // Without the key, the layer stays lazy as long as the daemon runs.
    let mount = program.mount();
    let file = File::open(mount.layers().join(hex(0))).unwrap();
    let mut lazy = vec![0; 100_000];
    file.read_exact_at(&mut lazy, 0).unwrap();
    drop(file);
    mount.stop();
    assert!(!plain(0).exists());

    fs::write(program.dir().join("config.toml"), "[erofs]\nplain = 'used'\n").unwrap();
    let mount = program.mount();
    assert_eq!(program.json(&["status"])["plain_layers"]["count"], 0);
    let file = File::open(mount.layers().join(hex(0))).unwrap();
    wait_until("the plain layer is made", || plain(0).exists());
    let mut bytes = vec![0; lazy.len()];
    File::open(plain(0)).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == lazy);
    drop(file);
    let shown = program.json(&["inspect", &pulled]);
    let shown: Vec<_> =
        shown["layers"].as_array().unwrap().iter().map(|layer| layer["plain"].clone()).collect();
    assert!(shown[0] == true && shown[1..].iter().all(|plain| *plain == false), "{shown:?}");
    let status = program.json(&["status"]);
    assert_eq!(status["plain_layers"]["count"], 1);
    assert!(status["plain_layers"]["bytes"].as_u64().unwrap() > 100_000);
    mount.stop();
    let report = program.json(&["verify"]);
    assert_eq!(
        (report["plain_layers"].as_u64(), report["plain_rebuilt"].as_array().map(Vec::len)),
        (Some(1), Some(0))
    );
}
