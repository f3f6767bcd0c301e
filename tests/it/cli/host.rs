//! `version`, `config check` and `doctor`.

use std::fs;

use serde_json::{Value, json};

use super::{Fixture, failed, keys, texts};

#[test]
fn version_names_program_store_protocol_and_kernel() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let shown = fixture.program.json(&["version"]);
    assert_eq!(keys(&shown), ["daemon", "kernel", "program", "protocol", "store", "store_format"]);
    assert_eq!(shown["program"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&shown["store_format"], &shown["daemon"]), (&json!("1"), &json!(null)));
    assert_eq!(shown["store"]["error"], json!(null));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(shown["kernel"]["release"], release.trim());
    let text = fixture.program.ok(&["version"]);
    assert!(text.starts_with(concat!("program   rcx-imagefs ", env!("CARGO_PKG_VERSION"))), "{text}");

    // It also works without a store, for a bug report.
    let none = Fixture::new().program.json(&["version"]);
    assert!(none["store"]["error"].as_str().unwrap().starts_with("there is no store at "), "{none}");
}

#[test]
fn config_check_names_the_line_of_a_mistake() {
    let fixture = Fixture::new();
    let file = fixture.program.dir().join("new.toml");
    let path = file.to_str().unwrap();
    fs::write(&file, "engine = 'auto'\n[mount]\nthreads = 4\n").unwrap();
    assert_eq!(fixture.program.ok(&["config", "check", path]), format!("configuration {path} is valid"));
    let checked = fixture.program.json(&["config", "check", path]);
    assert_eq!(checked, json!({"path": path, "exists": true}));
    fs::write(&file, "engine = 'auto'\n[mount]\nthread = 4\n").unwrap();
    let (error, _) = fixture.fails(&["config", "check", path]);
    assert!(error.starts_with(&format!("configuration {path}: line 3: unknown field `thread`")), "{error}");
    let (error, _) = fixture.fails(&["config", "check", "/nonexistent/config.toml"]);
    assert!(error.starts_with("configuration /nonexistent/config.toml: "), "{error}");

    // Without an argument, the file of `--config`.
    let own = fixture.program.dir().join("config.toml");
    fs::write(&own, "").unwrap();
    assert_eq!(fixture.program.json(&["config", "check"])["path"], own.to_str().unwrap());
    fs::write(&own, "no").unwrap();
    let (error, _) = fixture.fails(&["config", "check"]);
    assert!(error.starts_with(&format!("configuration {}: line 1", own.display())), "{error}");
}

fn check<'a>(shown: &'a Value, name: &str) -> &'a Value {
    let checks = shown["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {shown}"))
}

#[test]
fn doctor_fails_only_for_what_the_configuration_asks_for() {
    let (fixture, _) = Fixture::with("lab/a:1");
    let config = fixture.program.dir().join("config.toml");
    // Nothing here needs root or a certain kernel.
    fs::write(&config, "engine = 'overlay2'\n[isolate]\npath = '/nonexistent/isolate'\n").unwrap();
    let output = fixture.program.run(&["doctor", "--json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(keys(&shown), ["checks", "error"]);
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert_eq!(keys(check(&shown, "kernel")), ["hint", "message", "name", "state"]);
    assert_eq!(check(&shown, "isolate")["state"], "failed");
    assert!(check(&shown, "isolate")["message"].as_str().unwrap().contains("/nonexistent/isolate"));
    assert_eq!(
        (&check(&shown, "kernel")["state"], &check(&shown, "store")["state"]),
        (&json!("ok"), &json!("ok"))
    );
    assert_eq!(check(&shown, "daemon")["state"], "missing");
    assert_eq!(shown["error"]["code"], "host");
    assert!(shown["error"]["message"].as_str().unwrap().contains("isolate"), "{shown}");

    fs::write(&config, "engine = 'fuse'\n[isolate.images]\n7 = 'lab/none:1'\n8 = 'lab/a:1'\n9 = ''\n")
        .unwrap();
    let (out, err) = texts(&fixture.program.run(&["doctor"]));
    assert!(
        out.contains("failed   images     the store lacks images of [isolate.images]: lab/none:1\n"),
        "{out}"
    );
    assert!(out.contains("failed   daemon     no daemon serves the store\n"), "{out}");
    assert!(err.starts_with("error: this host lacks what is needed: "), "{err}");
}

#[test]
fn doctor_reports_an_unusable_store_and_an_invalid_configuration() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.program.store()).unwrap();
    fs::write(fixture.program.store().join("diary.txt"), "private").unwrap();
    let output = fixture.program.run(&["doctor", "--json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &check(&shown, "store")["state"]), (Some(2), &json!("failed")));
    fs::write(fixture.program.dir().join("config.toml"), "no-such-key = 1").unwrap();
    let (error, _) = failed(&fixture.program.run(&["doctor"]));
    assert!(error.contains("unknown field `no-such-key`"), "{error}");
}
