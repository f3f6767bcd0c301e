//! `login` and `logout`: the file that they write, how they ask, and what `pull` makes of a file.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use support::program::Program;

use super::{failed, texts};
use crate::registry::server::{Answer, Server};

/// A registry that accepts only the user `lab` with the password `secret`, and has no images.
async fn registry() -> Server {
    Server::start(|request, _| match request.header("authorization") {
        Some("Basic bGFiOnNlY3JldA==") if request.path() == "/v2/" => Answer::new(200, &[], b"{}"),
        Some("Basic bGFiOnNlY3JldA==") => Answer::new(404, &[], b""),
        _ => Answer::new(401, &[("WWW-Authenticate", "Basic realm=\"r\"")], b""),
    })
    .await
}

/// A command whose logins are in a file of the test.
fn command(program: &Program, arguments: &[&str]) -> Command {
    let mut command = program.command(arguments);
    command.env("REGISTRY_AUTH_FILE", auth_file(program)).env_remove("XDG_CONFIG_HOME");
    command
}

fn auth_file(program: &Program) -> PathBuf {
    program.dir().join("containers/auth.json")
}

/// Runs a command with this standard input.
fn run_with_input(program: &Program, arguments: &[&str], input: &str) -> Output {
    let mut command = command(program, arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads no input may have ended already.
    match child.stdin.take().unwrap().write_all(input.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
    child.wait_with_output().unwrap()
}

fn stored(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn login_is_checked_stored_used_and_removed() {
    let server = registry().await;
    let (program, address) = (Program::new(), server.address.as_str());
    let file = auth_file(&program);
    let login = ["login", "-u", "lab", "--password-stdin", address];
    let (error, hint) = failed(&run_with_input(&program, &login, "guessed\n"));
    assert_eq!(error, format!("login {address}: {address}: {address} refuses the login of `lab`"));
    assert!(hint.is_some() && !file.exists(), "a wrong login was stored");

    let (out, err) = texts(&run_with_input(&program, &login, "secret\n"));
    assert_eq!(out, format!("logged in to {address} as lab ({})\n", file.display()), "{err}");
    assert_eq!(stored(&file), json!({"auths": {address: {"auth": "bGFiOnNlY3JldA=="}}}));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let reference = format!("{address}/lab/app:1");
    let (error, _) = failed(&command(&program, &["pull", &reference]).output().unwrap());
    assert_eq!(error, format!("pull {reference}: {reference}: not found"), "the login is not used");

    let output = run_with_input(&program, &[&login[..], &["--json"]].concat(), "secret\r\n");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let path = file.display().to_string();
    assert_eq!(printed, json!({"registry": address, "username": "lab", "file": path, "checked": true}));

    let output = command(&program, &["logout", "--json", address]).output().unwrap();
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed, json!({"registry": address, "removed": 1, "file": path}));
    let (error, hint) = failed(&command(&program, &["logout", address]).output().unwrap());
    assert_eq!(error, format!("logout {address}: {path} has no login for {address}"));
    assert!(hint.unwrap().contains(&format!("docker logout {address}")));
    let all = command(&program, &["logout", "--all"]).output().unwrap();
    assert_eq!(texts(&all).0, format!("removed 0 logins ({path})\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn login_for_a_namespace_is_stored_under_its_name() {
    let server = registry().await;
    let program = Program::new();
    let key = format!("{}/lab", server.address);
    let file = program.dir().join("other.json");
    let url = format!("http://{key}/");
    let login = ["login", "-u", "lab", "--password-stdin", "--authfile", file.to_str().unwrap(), &url];
    let output = run_with_input(&program, &login, "secret");
    assert!(output.status.success(), "{}", texts(&output).1);
    assert_eq!(stored(&file), json!({"auths": {key: {"auth": "bGFiOnNlY3JldA=="}}}));
}

/// `script` (util-linux) gives the command a terminal.
#[tokio::test(flavor = "multi_thread")]
async fn terminal_does_not_show_the_password() {
    let server = registry().await;
    let program = Program::new();
    let inner = command(&program, &["login", &server.address]);
    let words = std::iter::once(inner.get_program()).chain(inner.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"]);
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => script.env(key, value),
            None => script.env_remove(key),
        };
    }
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut shown = String::new();
    for (prompt, answer) in [("user name for ", "lab\n"), ("password of lab for ", "secret\n")] {
        while !shown.contains(prompt) {
            let mut bytes = [0; 256];
            let length = output.read(&mut bytes).unwrap();
            assert!(length > 0, "no `{prompt}` in:\n{shown}");
            shown += &String::from_utf8_lossy(&bytes[..length]);
        }
        input.write_all(answer.as_bytes()).unwrap();
    }
    output.read_to_string(&mut shown).unwrap();
    assert!(child.wait().unwrap().success(), "{shown}");
    assert!(shown.contains("logged in to") && !shown.contains("secret"), "{shown}");
}

#[test]
fn password_is_not_asked_for_without_a_terminal() {
    let program = Program::new();
    let (error, hint) = failed(&run_with_input(&program, &["login", "127.0.0.1:1"], "secret\n"));
    assert!(error.contains("standard input is not a terminal"), "{error}");
    assert!(hint.unwrap().contains("--password-stdin 127.0.0.1:1"));
    for (user, password, expected) in [("a:b", "x", "colon"), ("a", "\n", "password is empty")] {
        let login = ["login", "-u", user, "--password-stdin", "127.0.0.1:1"];
        let (error, _) = failed(&run_with_input(&program, &login, password));
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_file_that_others_can_read_is_a_warning_and_one_that_is_not_json_an_error() {
    let server = registry().await;
    let program = Program::new();
    let file = auth_file(&program);
    fs::create_dir(file.parent().unwrap()).unwrap();
    let auths = json!({"auths": {&server.address: {"auth": "bGFiOnNlY3JldA=="}}});
    fs::write(&file, auths.to_string()).unwrap();
    let pull = || {
        let output = command(&program, &["pull", &format!("{}/lab/app:1", server.address)]).output().unwrap();
        texts(&output).1
    };
    for (mode, warned) in [(0o644, true), (0o600, false), (0o640, false)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let log = pull();
        let warnings = log.matches("is accessible to other users").count();
        assert_eq!(warnings, usize::from(warned), "{mode:o}: {log}");
        assert!(!warned || log.contains(&format!("chmod go= {}", file.display())), "{log}");
        assert!(log.contains("not found"), "the login is used all the same: {log}");
    }
    fs::write(&file, "{ \"auths\": ").unwrap();
    let log = pull();
    assert!(log.contains(&format!("{} is not a valid credential file", file.display())), "{log}");
    assert!(log.contains("hint: repair"), "{log}");
    fs::write(&file, r#"{"credsStore": "is-not-there"}"#).unwrap();
    let log = pull();
    assert!(log.contains("the credential helper `docker-credential-is-not-there`"), "{log}");
    assert!(log.contains("is not installed") && log.contains("not authorized"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_login_for_one_of_two_registries_is_named_and_the_other_is_used() {
    let (good, bad) = (registry().await, registry().await);
    let program = Program::new();
    let file = auth_file(&program);
    fs::create_dir(file.parent().unwrap()).unwrap();
    let auths =
        json!({"auths": {&good.address: {"auth": "bGFiOnNlY3JldA=="}, &bad.address: {"auth": "YTpi"}}});
    fs::write(&file, auths.to_string()).unwrap();
    let (good, bad) = (&good.address, &bad.address);
    let (one, other) = (format!("{bad}/lab/app:1"), format!("{good}/lab/app:1"));
    let output = command(&program, &["pull", &one, &other]).output().unwrap();
    let (_, err) = texts(&output);
    assert!(err.contains(&format!("{bad} refuses the login of `a` (from {})", file.display())), "{err}");
    assert!(err.contains(&format!("{other}: not found")), "the right login is used all the same: {err}");
}
