//! `doctor` and `version` beside a running daemon.

use std::fs;

use rcx_imagefs::roots::enter_private_namespace;
use serde_json::Value;
use support::program::Program;
use support::text::{image, layers, load};

#[test]
fn doctor_finds_kernel_features_and_the_daemon_and_leaves_no_mount() {
    // Other tests mount at the same time.
    enter_private_namespace().expect("this test needs root");
    let program = Program::new();
    load(&program, &image("any", layers("f file text")));
    fs::write(program.dir().join("config.toml"), "engine = 'fuse'\n").unwrap();
    let mount = program.mount();
    let mounts = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap().lines().count();
    let before = mounts();
    let shown = program.json(&["doctor"]);
    assert_eq!(mounts(), before);
    let state = |name: &str| {
        let checks = shown["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).map(|check| check["state"].clone())
    };
    for name in ["kernel", "fuse", "overlay", "store", "daemon", "roots"] {
        assert_eq!(state(name), Some(Value::from("ok")), "{name}: {shown}");
    }
    let daemon = &program.json(&["version"])["daemon"];
    assert_eq!(daemon["mountpoint"], mount.dir().to_str().unwrap());
    assert_eq!((&daemon["version"], &daemon["protocol"]), (&env!("CARGO_PKG_VERSION").into(), &2.into()));
    mount.stop();
}
