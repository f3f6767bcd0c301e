//! `login`, `pull` and Debian's registry: with a token server, over TLS, and with client certificates.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use rcx_imagefs::error::chain_text;
use rcx_imagefs::image::Reference;
use rcx_imagefs::registry::{AuthFiles, LoginCheck, PlainHttp, Registry, RegistryError, RegistryOptions};
use support::docker_registry::{DockerRegistry, PASSWORD, USER};
use support::images::{Images, run};
use support::program::{Program, failure};
use support::token_server::TokenServer;

/// Runs `login` with this password, and the login in a file of the test.
fn login(program: &Program, registry: &str, password: &str) -> Output {
    let mut command = program.command(&["login", "-u", USER, "--password-stdin", registry]);
    command.env("REGISTRY_AUTH_FILE", program.dir().join("auth.json"));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn login_and_pull_get_tokens_for_what_they_need() {
    let images = Images::make(&["small"]);
    let open = DockerRegistry::start();
    let digest = open.push_from(&images.layout(), "small", "lab/private:1");
    let program = Program::new();
    let tokens = TokenServer::start(program.dir());
    let registry = open.serve_again("", &tokens.registry_config());
    let address = registry.address();

    let error = failure(&login(&program, address, "guessed"), &["login"]);
    assert!(error.contains("refuses the login of `reader` (incorrect username or password)"), "{error}");
    let output = login(&program, address, PASSWORD);
    assert!(output.status.success(), "{output:?}");

    let reference = registry.reference("lab/private:1");
    let pull = || {
        let mut command = program.command(&["pull", &reference]);
        command.env("REGISTRY_AUTH_FILE", program.dir().join("auth.json")).output().unwrap()
    };
    let before = tokens.requests().len();
    let output = pull();
    let pulled = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert_eq!(pulled, registry.reference(&format!("lab/private@{digest}")), "{output:?}");
    let requests = tokens.requests();
    let scopes: Vec<&String> = requests[before..].iter().collect();
    assert_eq!(scopes.len(), 1, "one token is enough for an image: {scopes:?}");
    assert!(scopes[0].contains("scope=repository%3Alab%2Fprivate%3Apull"), "{scopes:?}");

    // skopeo reads the file that `login` wrote.
    let file = program.dir().join("auth.json").display().to_string();
    let image = format!("docker://{reference}");
    let arguments = ["inspect", "--tls-verify=false", "--authfile", &file, "--format", "{{.Digest}}", &image];
    assert_eq!(run("skopeo", &arguments).trim(), digest);

    fs::remove_file(program.dir().join("auth.json")).unwrap();
    let error = failure(&pull(), &["pull"]);
    assert!(error.contains("not authorized") && error.contains("rcx-imagefs login"), "{error}");
}

/// Makes a certificate for `name` that is signed by the authority `ca`, or an authority. Returns the paths without extension.
fn certificate(dir: &Path, name: &str, ca: Option<&str>) {
    let path = |file: String| dir.join(file).display().to_string();
    let (key, cert) = (path(format!("{name}.key")), path(format!("{name}.cert")));
    let subject = format!("/CN={name}");
    let mut arguments =
        vec!["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", &subject];
    arguments.extend(["-keyout", &key, "-out", &cert]);
    let issuer = ca.map(|ca| (path(format!("{ca}.cert")), path(format!("{ca}.key"))));
    match &issuer {
        Some((ca, ca_key)) => {
            arguments.extend(["-CA", ca, "-CAkey", ca_key, "-addext", "subjectAltName=IP:127.0.0.1"]);
            arguments.extend(["-addext", "basicConstraints=critical,CA:FALSE"]);
        }
        None => arguments.extend(["-addext", "keyUsage=critical,keyCertSign"]),
    }
    run("openssl", &arguments);
}

#[test]
fn certificates_for_a_registry_are_used() {
    let images = Images::make(&["small"]);
    let open = DockerRegistry::start();
    let digest = open.push_from(&images.layout(), "small", "lab/small:1");
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    certificate(dir.path(), "ca", None);
    certificate(dir.path(), "server", Some("ca"));
    certificate(dir.path(), "client", Some("ca"));
    let tls = format!("certificate: {}, key: {}", file("server.cert"), file("server.key"));
    let users = dir.path().join("htpasswd");
    fs::write(&users, format!("{USER}:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"))
        .unwrap();
    let auth = format!("auth: {{ htpasswd: {{ realm: test, path: {} }} }}\n", users.display());
    let registry =
        open.serve_again(&format!(", tls: {{ {tls}, clientcas: [ {} ] }}", file("ca.cert")), &auth);

    let certs = dir.path().join("certs.d");
    let host = certs.join(registry.address());
    fs::create_dir_all(&host).unwrap();
    let auth_file = dir.path().join("auth.json");
    let client = || {
        let options = RegistryOptions {
            plain_http: PlainHttp::Never,
            certificate_dirs: vec![certs.clone()],
            auth: AuthFiles::new(vec![auth_file.clone()]),
            ..RegistryOptions::default()
        };
        Registry::new(options).unwrap()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let reference = Reference::parse(&registry.reference("lab/small:1"), None).unwrap();
    let resolve = || runtime.block_on(client().resolve(&reference));

    let error = chain_text(&resolve().unwrap_err());
    assert!(error.ends_with(": certificate is not trusted: its issuer is unknown"), "{error}");
    fs::copy(file("ca.cert"), host.join("ca.crt")).unwrap();
    let error = chain_text(&resolve().unwrap_err());
    assert!(error.contains(": the server requires a client certificate"), "{error}");
    fs::copy(file("client.cert"), host.join("client.cert")).unwrap();
    let error = resolve().unwrap_err();
    assert!(matches!(error, RegistryError::Certificate { .. }), "{error}");
    assert!(error.to_string().contains("client.cert: there is no key (`.key`)"), "{error}");
    fs::copy(file("client.key"), host.join("client.key")).unwrap();
    let error = resolve().unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");

    let check = |password| runtime.block_on(client().check_login(registry.address(), USER, password));
    assert_eq!(check(PASSWORD).unwrap(), LoginCheck::Accepted);
    assert!(matches!(check("guessed").unwrap_err(), RegistryError::LoginRefused { .. }));
    rcx_imagefs::registry::add_login(&auth_file, registry.address(), USER, PASSWORD).unwrap();
    assert_eq!(resolve().unwrap().manifest_digest.to_string(), digest);

    // Without the option too: on loopback, plain HTTP is implied only if there are no certificates.
    let program = Program::new();
    let config = program.dir().join(".config/containers");
    fs::create_dir_all(&config).unwrap();
    fs::rename(&certs, config.join("certs.d")).unwrap();
    let mut pull = program.command(&["pull", &registry.reference("lab/small:1")]);
    let output = pull.env("REGISTRY_AUTH_FILE", &auth_file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
