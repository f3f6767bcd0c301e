//! Credential helpers: programs that docker runs to look up credentials.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::super::message::server_message;
use super::error::AuthError;
use super::login::{Login, LoginSecret};

/// The user name that marks a helper's secret as an identity token.
const TOKEN_USER: &str = "<token>";

/// The output of a helper.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperCredentials {
    #[serde(default)]
    username: String,
    secret: String,
}

/// The program of a helper that a file calls `name`.
pub(super) fn helper_program(name: &str) -> String {
    format!("docker-credential-{name}")
}

/// Runs `docker-credential-NAME get`; `None` if the helper has no credentials for `server`.
///
/// The protocol is that of docker/docker-credential-helpers. `path` is the file that names the helper.
pub(super) async fn run_helper(
    name: &str,
    server: &str,
    path: &Path,
    deadline: Duration,
) -> Result<Option<Login>, AuthError> {
    let helper = helper_program(name);
    // A name with a slash could run any program; docker searches only PATH.
    if name.contains('/') {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "its name contains a slash");
        return Err(AuthError::HelperStart { helper, path: path.to_owned(), source });
    }
    get_credentials(Command::new(&helper), &helper, server, path, deadline).await
}

/// Runs `program get`. `helper` is its name for messages.
async fn get_credentials(
    mut program: Command,
    helper: &str,
    server: &str,
    path: &Path,
    deadline: Duration,
) -> Result<Option<Login>, AuthError> {
    let helper = helper.to_owned();
    let start = |source| AuthError::HelperStart { helper: helper.clone(), path: path.to_owned(), source };
    let mut child = program
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let run = async {
        // A helper may end without reading its input. Only its exit status and output matter.
        if let Err(error) = stdin.write_all(server.as_bytes()).await {
            tracing::debug!(%error, helper, "cannot write to the credential helper");
        }
        drop(stdin);
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(deadline, run).await {
        Ok(output) => output.map_err(start)?,
        Err(_) => return Err(AuthError::HelperDeadline { helper, after: deadline }),
    };
    if !output.status.success() {
        // Helpers write their errors to stdout. The text below is part of the protocol.
        let message = server_message(&[output.stdout, output.stderr].concat());
        if message.contains("credentials not found") {
            return Ok(None);
        }
        return Err(AuthError::HelperFailed { helper, status: output.status, message });
    }
    let output: HelperCredentials = serde_json::from_slice(&output.stdout)
        .map_err(|source| AuthError::HelperOutput { helper: helper.clone(), source })?;
    let HelperCredentials { username: user, secret } = output;
    let secret = match (user.as_str(), secret.as_str()) {
        ("", "") => return Ok(None),
        (TOKEN_USER, _) => LoginSecret::IdentityToken(secret),
        _ => LoginSecret::Password { user, password: secret },
    };
    Ok(Some(Login { secret, origin: format!("from the credential helper `{helper}`") }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// Runs a shell script as a helper.
    async fn helper(script: &str, deadline: Duration) -> Result<Option<Login>, AuthError> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("helper");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let file = Path::new("config.json");
        get_credentials(Command::new(program), "docker-credential-test", "reg:1", file, deadline).await
    }

    #[tokio::test]
    async fn helper_reads_the_server_and_prints_the_credentials() {
        let script = r#"test "$1" = get || exit 9; read -r server; echo "{\"ServerURL\":\"x\",\"Username\":\"$server\",\"Secret\":\"s\"}""#;
        let login = helper(script, DEADLINE).await.unwrap().unwrap();
        assert!(login.secret == Login::typed("reg:1", "s").secret, "{login}");
        let nothing = "echo credentials not found in native keychain; exit 1";
        assert_eq!(helper(nothing, DEADLINE).await.unwrap(), None);
        let token = r#"echo '{"Username":"<token>","Secret":"s"}'"#;
        let login = helper(token, DEADLINE).await.unwrap().unwrap();
        assert!(login.secret == LoginSecret::IdentityToken("s".to_owned()), "{login}");
    }

    #[tokio::test]
    async fn error_names_a_failing_or_hanging_helper() {
        let failed = helper("echo locked >&2; exit 3", DEADLINE).await.unwrap_err().to_string();
        assert!(failed.contains("docker-credential-test") && failed.contains("locked"), "{failed}");
        assert!(matches!(helper("echo hello", DEADLINE).await, Err(AuthError::HelperOutput { .. })));
        let hangs = helper("exec sleep 1000", Duration::from_millis(50)).await;
        assert!(matches!(hangs, Err(AuthError::HelperDeadline { .. })));
    }
}
