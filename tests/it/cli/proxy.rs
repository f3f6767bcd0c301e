//! The proxies of the environment, and retries.

use std::process::{Command, Stdio};

use support::program::Program;

use super::{failed, texts};
use crate::registry::server::{Answer, Server};

/// Pulls from a registry that exists only behind a proxy.
fn pull(program: &Program, host: &str, variables: &[(&str, &str)]) -> std::process::Output {
    let mut command = program.command(&["pull", &format!("{host}/lab/app:1")]);
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.envs(variables.iter().copied()).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_is_asked_for_plain_and_for_encrypted_registries() {
    let proxy = Server::start(|request, _| match request.method() {
        "CONNECT" => Answer::new(403, &[], b""),
        _ => Answer::new(404, &[], b""),
    })
    .await;
    let program = Program::new();
    std::fs::write(program.dir().join("config.toml"), "plain-http = ['plain.invalid:5000']\n").unwrap();
    let url = format!("http://{}", proxy.address);
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let (error, _) = failed(&pull(&program, "plain.invalid:5000", &[(variable, &url)]));
        assert!(error.ends_with("not found"), "{variable}: {error}");
    }
    assert_eq!(proxy.requests()[0].path(), "http://plain.invalid:5000/v2/lab/app/manifests/1");
    let before = proxy.requests().len();
    let (error, hint) = failed(&pull(&program, "secure.invalid", &[("HTTPS_PROXY", &url)]));
    assert_eq!(error, "pull secure.invalid/lab/app:1: secure.invalid: the proxy refused the connection");
    assert!(hint.unwrap().ends_with("and that the proxy in $HTTPS_PROXY is right"));
    assert_eq!(proxy.requests()[before].path(), "secure.invalid:443");

    let before = proxy.requests().len();
    let direct = [("HTTPS_PROXY", url.as_str()), ("HTTP_PROXY", &url), ("NO_PROXY", "invalid,10.0.0.0/8")];
    for host in ["secure.invalid", "plain.invalid:5000", "127.0.0.1:1"] {
        let output = pull(&program, host, &direct);
        assert!(!output.status.success(), "{}", texts(&output).1);
    }
    assert_eq!(proxy.requests().len(), before, "hosts in NO_PROXY and on loopback are contacted directly");
}

/// `script` (util-linux) gives the command a terminal.
#[test]
fn terminal_shows_each_retry() {
    let program = Program::new();
    let command = program.command(&["pull", "127.0.0.1:1/lab/app:1"]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"]).env_remove("RUST_LOG");
    let shown = texts(&script.stdin(Stdio::null()).output().unwrap()).0;
    for retry in 1..=3 {
        let expected = format!("(retry {retry})");
        assert!(
            shown.contains(&expected) && shown.contains("connection refused; trying again in"),
            "{shown}"
        );
    }
    let (error, _) = failed(&program.run(&["pull", "127.0.0.1:1/lab/app:1"]));
    assert!(error.ends_with("connection refused"), "a pipe gets the error only: {error}");
}
