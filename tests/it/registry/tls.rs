//! A registry with a self-signed certificate is refused unless the certificate is trusted.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use rcx_imagefs::error::chain_text;
use rcx_imagefs::registry::{PlainHttp, Registry, RegistryError, RegistryOptions};
use tempfile::TempDir;

use super::auth::with_password;
use super::{options, tagged};

/// OpenSSL's file server.
struct TlsServer {
    child: Child,
    address: String,
    dir: TempDir,
}

impl TlsServer {
    /// Serves a file as the body of a response.
    fn start(path: &str, content: &[u8]) -> Self {
        Self::serve("-WWW", path, content)
    }

    /// `mode` is `-WWW` to serve the content of files, or `-HTTP` if they are whole responses with headers.
    fn serve(mode: &str, path: &str, content: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
        let request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=registry -days 2 \
            -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE -keyout key.pem -out cert.pem";
        let made =
            openssl(&dir, request).stderr(Stdio::null()).status().expect("openssl is needed for this test");
        assert!(made.success());
        let serve = format!("s_server -accept 127.0.0.1:0 -cert cert.pem -key key.pem {mode}");
        let mut child = openssl(&dir, &serve)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.map_while(Result::ok).find(|line| line.starts_with("ACCEPT ")).unwrap();
        let address = line["ACCEPT ".len()..].to_owned();
        Self { child, address, dir }
    }

    fn trusting(&self) -> Result<Registry, RegistryError> {
        self.trusting_with(options())
    }

    fn trusting_with(&self, options: RegistryOptions) -> Result<Registry, RegistryError> {
        let certs = self.dir.path().join("certs.d");
        let host = certs.join(&self.address);
        std::fs::create_dir_all(&host).unwrap();
        std::fs::copy(self.dir.path().join("cert.pem"), host.join("ca.crt")).unwrap();
        let certificate_dirs = vec![self.dir.path().join("none"), certs];
        Registry::new(RegistryOptions { plain_http: PlainHttp::Never, certificate_dirs, ..options })
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        // The server may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn openssl(dir: &TempDir, arguments: &str) -> Command {
    let mut command = Command::new("openssl");
    command.current_dir(dir.path()).args(arguments.split_whitespace());
    command
}

#[tokio::test]
async fn self_signed_certificate_is_refused_unless_it_is_trusted() {
    let manifest = super::manifests::manifest("");
    let server = TlsServer::start("v2/lab/app/manifests/1", &manifest);
    let untrusting = Registry::new(RegistryOptions { plain_http: PlainHttp::Never, ..options() }).unwrap();
    let error = untrusting.resolve(&tagged(&server.address)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Tls { .. }), "{error:?}");
    let expected = format!("{}: certificate is not trusted: its issuer is unknown", server.address);
    assert_eq!(chain_text(&error), expected);
    assert!(error.hint().unwrap().contains(&format!("certs.d/{}/ca.crt", server.address)));
    let resolved = server.trusting().unwrap().resolve(&tagged(&server.address)).await.unwrap();
    assert_eq!(resolved.manifest_bytes, manifest);
}

#[tokio::test]
async fn redirect_from_https_to_http_is_not_followed() {
    let redirect = "HTTP/1.0 307 Temporary Redirect\r\nLocation: http://registry.invalid:81/v2/\r\n\r\n";
    let server = TlsServer::serve("-HTTP", "v2/lab/app/manifests/1", redirect.as_bytes());
    let error = server.trusting().unwrap().resolve(&tagged(&server.address)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Redirect { .. }), "{error:?}");
    assert!(error.to_string().ends_with("redirects from HTTPS to HTTP at registry.invalid:81"), "{error}");
}

#[tokio::test]
async fn password_is_not_sent_to_a_token_server_without_tls() {
    let refusal = "HTTP/1.0 401 Unauthorized\r\n\
        WWW-Authenticate: Bearer realm=\"http://registry.invalid/token\",service=\"s\"\r\n\r\n";
    let server = TlsServer::serve("-HTTP", "v2/lab/app/manifests/1", refusal.as_bytes());
    let directory = tempfile::tempdir().unwrap();
    let registry = server.trusting_with(with_password(&directory, &server.address)).unwrap();
    let error = registry.resolve(&tagged(&server.address)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Token { .. }), "{error:?}");
    assert!(error.to_string().contains("`http://registry.invalid/token`, without encryption"), "{error}");
}
