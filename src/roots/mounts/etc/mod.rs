//! Files of `/etc` that a root has in addition to those of its image: the names of its user and of hosts.
//!
//! Programs expect a name for their user, `localhost`, and name servers if they have a network. Hardly any image has lines for
//! them. The files stand in the skeleton of the root, a lower layer above the image. So read-only roots have them too, and
//! the upper contains only what programs change.
//!
//! The image is not trusted. Its links are followed inside its tree only, and only regular files of bounded size are read.
//! Where the image has something else at a path, it stays as it is.

mod image;
mod layer;
mod text;

use std::fs::File;
use std::io::Read as _;
use std::os::fd::BorrowedFd;
use std::path::Path;

use self::image::{ImageFile, ImageRoot};
pub(super) use self::layer::EtcLayer;
use self::layer::{EtcFile, FileAttributes};
use self::text::HostLine;
use crate::roots::RootsError;

/// Largest file that is read, in bytes. `/etc/passwd` of a large installation has some hundred KiB.
const FILE_MAX: u64 = 1 << 20;
/// The name servers of the host.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";
/// The names of hosts that the host itself knows.
const HOST_HOSTS: &str = "/etc/hosts";

/// What a root has in `/etc` in addition to its image.
///
/// `/etc/hosts` always names `localhost`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Injection {
    /// The user and the group that get a line in `/etc/passwd` and `/etc/group`.
    user: Option<(u32, u32)>,
    hostname: Option<String>,
    host_network: bool,
}

impl Injection {
    /// Adds a line for a user and one for its group, unless the image has lines for their numbers.
    #[must_use]
    pub fn with_user(self, uid: u32, gid: u32) -> Self {
        Self { user: Some((uid, gid)), ..self }
    }

    /// Adds the name that gethostname(2) returns in the sandbox to `/etc/hosts`.
    #[must_use]
    pub fn with_hostname(self, name: &str) -> Self {
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let is_name = !name.is_empty() && name.bytes().all(is_valid);
        Self { hostname: is_name.then(|| name.to_owned()), ..self }
    }

    /// Adds the host's name servers, and the names in its `/etc/hosts`: the sandbox shares the network of the host.
    #[must_use]
    pub fn with_host_network(self) -> Self {
        Self { host_network: true, ..self }
    }

    /// Plans the files for an image whose tree is at `root`. Returns `None` if the image needs none, or if its `/etc` is not a
    /// directory.
    pub(super) fn plan(&self, root: BorrowedFd<'_>, image: &str) -> Result<Option<EtcLayer>, RootsError> {
        let image = ImageRoot::new(root, image);
        let Some(directories) = image.etc()? else { return Ok(None) };
        let etc = directories.last().map(|(path, _)| path.clone()).unwrap_or_default();
        let mut files = Vec::new();
        let mut merge = |name: &'static str, merged: &dyn Fn(&[u8]) -> Option<Vec<u8>>| {
            let (content, attributes) = match image.read(&etc.join(name))? {
                ImageFile::Missing => (Vec::new(), FileAttributes::default_file()),
                ImageFile::Regular(content, attributes) => (content, attributes),
                ImageFile::Unusable => return Ok(()),
            };
            if let Some(content) = merged(&content) {
                files.push(EtcFile { name, content, attributes });
            }
            Ok::<_, RootsError>(())
        };
        if let Some((uid, gid)) = self.user {
            merge("passwd", &|content| text::passwd(content, uid, gid))?;
            merge("group", &|content| text::group(content, gid))?;
        }
        let host = self.host_network.then(|| host_file(HOST_HOSTS)).flatten().unwrap_or_default();
        let wanted = HostLine::wanted(self.hostname.as_deref());
        merge("hosts", &|content| text::hosts(content, &host, &wanted))?;
        if self.host_network
            && let Some(content) = host_file(HOST_RESOLV_CONF)
        {
            files.push(EtcFile { name: "resolv.conf", content, attributes: FileAttributes::default_file() });
        }
        Ok((!files.is_empty()).then_some(EtcLayer { directories, files }))
    }
}

/// Reads a file of the host. Returns `None` if it does not exist, cannot be read or is too large: the host then has no names to
/// share.
fn host_file(path: &str) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let read = File::open(Path::new(path)).and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut content));
    match read {
        Ok(length) if length as u64 <= FILE_MAX => Some(content),
        Ok(_) => {
            tracing::warn!(
                "the root gets no copy of {path} of the host: the file is larger than {FILE_MAX} bytes"
            );
            None
        }
        Err(error) => {
            tracing::info!("the root gets no copy of {path} of the host: {error}");
            None
        }
    }
}
