//! A token server for Debian's `docker-registry`: signs tokens for one user.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use crate::docker_registry::{PASSWORD, USER};
use crate::images::run;

/// How long tokens are valid.
const LIFETIME: Duration = Duration::from_secs(300);

/// Issues tokens to [`USER`] with [`PASSWORD`], on a free port of loopback. Its thread ends with the process.
#[derive(Debug)]
pub struct TokenServer {
    address: String,
    certificate: PathBuf,
    requests: Arc<Mutex<Vec<String>>>,
}

impl TokenServer {
    /// Starts a server with a new key in `dir`.
    pub fn start(dir: &Path) -> Self {
        let (key, certificate) = (dir.join("token-key.pem"), dir.join("token.pem"));
        let (key_path, certificate_path) = (key.display().to_string(), certificate.display().to_string());
        let subject = ["-subj", "/CN=token server", "-days", "2"];
        let files = ["-keyout", &key_path, "-out", &certificate_path];
        let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes"];
        run("openssl", &[&request[..], &subject[..], &files[..]].concat());
        let pem = fs::read_to_string(&certificate).expect("openssl made the certificate");
        let chain: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind to a free port");
        let address = listener.local_addr().expect("the listener has an address").to_string();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Clients may disconnect.
                let _ = answer(stream, &key, &chain, &seen);
            }
        });
        Self { address, certificate, requests }
    }

    /// The part `auth` of the configuration of a registry that requires tokens of this server.
    pub fn registry_config(&self) -> String {
        format!(
            "auth: {{ token: {{ realm: \"http://{}/token\", service: test, issuer: test, rootcertbundle: {} }} }}\n",
            self.address,
            self.certificate.display()
        )
    }

    /// The request lines received so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no holder panics").clone()
    }
}

fn answer(stream: TcpStream, key: &Path, chain: &str, seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut authorization = String::new();
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                value.clone_into(&mut authorization)
            }
            Some(_) => {}
            None => break,
        }
    }
    seen.lock().expect("no holder panics").push(request.clone());
    let credentials = format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    let (status, body) = match authorization == credentials {
        true => ("200 OK", json!({ "token": token(&request, key, chain), "expires_in": LIFETIME.as_secs() })),
        false => ("401 Unauthorized", json!({ "details": "incorrect username or password" })),
    };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    (&stream).write_all(format!("{head}{body}").as_bytes())
}

/// A signed token (RFC 7519) for the scopes in the request; without a scope it grants nothing.
fn token(request: &str, key: &Path, chain: &str) -> String {
    let scopes = request.split(['?', '&', ' ']).filter_map(|part| part.strip_prefix("scope="));
    let access = scopes.filter_map(|scope| {
        let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        let [kind, name, actions] = scope.split(':').collect::<Vec<_>>().try_into().ok()?;
        Some(json!({ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() }))
    });
    let access: Vec<_> = access.collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs();
    let claims = json!({
        "iss": "test", "aud": "test", "sub": USER, "iat": now, "nbf": now - 60, "exp": now + LIFETIME.as_secs(),
        "jti": now.to_string(), "access": access,
    });
    let head = json!({ "typ": "JWT", "alg": "RS256", "x5c": [chain] });
    let encoded = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encoded(head), encoded(claims));
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-sign"]).arg(key).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = openssl.spawn().expect("openssl is needed for this test");
    child.stdin.take().expect("stdin is piped").write_all(signed.as_bytes()).expect("openssl reads");
    let signature = child.wait_with_output().expect("openssl ends").stdout;
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}
