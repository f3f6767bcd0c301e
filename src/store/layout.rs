//! Opens and creates a store and its directories.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use super::Store;
use super::access::{PRIVATE, make_private};
use super::dir::{self, Dir, TempFile, read_bounded};
use super::error::StoreError;
use crate::os::{self, AtPath as _};

pub(super) const INDEX_JSON: &str = "index.json";
pub(super) const BLOBS: &str = "blobs";
pub(super) const SHA256: &str = "sha256";
const OCI_LAYOUT: &str = "oci-layout";
const OCI_LAYOUT_VERSION: &str = "1.0.0";
/// The directory beside the layout, for all files that are not part of the layout.
const TOP: &str = "rcx-imagefs";
const VERSION_FILE: &str = "version";
/// Directory of roots, in `rcx-imagefs`.
const ROOTS: &str = "roots";
/// Format version of the directory `rcx-imagefs`. It changes if an older program would misread data of a newer one.
pub(super) const VERSION: &str = "1";

/// The file `index.json` of an empty layout (image-spec, image-index.md).
const EMPTY_INDEX: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// Mode of directories that everybody may read who may enter the store, and of those above a new store.
const DIR_MODE: u32 = 0o755;
/// Mode of files that everybody may read who may enter the store.
pub(super) const FILE_MODE: u32 = 0o644;

/// A directory below `rcx-imagefs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subdir {
    Indexes,
    Seekable,
    Trees,
    Traces,
    Plain,
    Partial,
    Tmp,
    Locks,
}

impl Subdir {
    fn name(self) -> &'static str {
        match self {
            Self::Indexes => "indexes",
            Self::Seekable => "seekable",
            Self::Trees => "trees",
            Self::Traces => "traces",
            Self::Plain => "plain",
            Self::Partial => "partial",
            Self::Tmp => "tmp",
            Self::Locks => "locks",
        }
    }

    fn mode(self) -> u32 {
        match self {
            Self::Indexes | Self::Seekable | Self::Trees | Self::Traces => DIR_MODE,
            Self::Plain | Self::Partial | Self::Tmp | Self::Locks => 0o700,
        }
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct OciLayout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl Store {
    /// Opens an existing store. Any OCI image layout is a store. Writes nothing.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let path = absolute(path)?;
        let root = Dir::open(&path)?;
        if !check_layout(&root)? {
            return Err(match root.names()?.is_empty() {
                true => StoreError::Missing { path },
                false => StoreError::NotAStore { path },
            });
        }
        if let Some(top) = root.sub(TOP)? {
            check_version(&top)?;
        }
        Ok(Self::at(path, root))
    }

    /// Returns true for a store, and false for a directory that can become one. Fails for any other directory. Writes nothing.
    pub fn exists(path: &Path) -> Result<bool, StoreError> {
        let path = absolute(path)?;
        match Dir::open(&path) {
            Ok(root) => is_store(&root, &path),
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Opens a store; creates it first if the directory is missing or empty. Several processes may do so at once.
    ///
    /// Only the owner of a new store may read it. Also removes leftovers of dead writers from `tmp`.
    pub fn open_or_create(path: &Path) -> Result<Self, StoreError> {
        let path = absolute(path)?;
        create_dir_all(&path, PRIVATE)?;
        let root = Dir::open(&path)?;
        if !is_store(&root, &path)? {
            make_private(&root, None)?;
            create(&root)?;
        }
        let store = Self::open(&path)?;
        store.require_write_access()?;
        dir::sweep(&store.make_subdir(Subdir::Tmp)?, false)?;
        Ok(store)
    }

    /// The default directory for the upper directories of roots. Creates only its parent.
    ///
    /// It is not part of the store: `gc` does not touch it.
    pub fn roots_path(&self) -> Result<PathBuf, StoreError> {
        Ok(self.make_top()?.path_of(ROOTS))
    }

    /// The path of a file in a subdirectory, whether or not it exists. Used only in messages.
    pub(super) fn path_in(&self, subdir: Subdir, name: &str) -> PathBuf {
        [self.path(), TOP.as_ref(), subdir.name().as_ref(), name.as_ref()].iter().collect()
    }

    /// The store's own directory.
    pub(super) fn root(&self) -> &Dir {
        &self.shared.root
    }

    /// Opens `blobs/sha256`; `None` if the layout has no blob yet.
    pub(super) fn blobs(&self) -> Result<Option<Dir>, StoreError> {
        match self.root().sub(BLOBS)? {
            Some(blobs) => blobs.sub(SHA256),
            None => Ok(None),
        }
    }

    /// Opens `blobs/sha256`, creating it if missing.
    pub(super) fn make_blobs(&self) -> Result<Dir, StoreError> {
        self.root().make_sub(BLOBS, DIR_MODE)?.make_sub(SHA256, DIR_MODE)
    }

    /// Opens `rcx-imagefs`; `None` if it is missing.
    pub(super) fn top(&self) -> Result<Option<Dir>, StoreError> {
        self.root().sub(TOP)
    }

    /// Opens `rcx-imagefs`, creating it if missing.
    pub(super) fn make_top(&self) -> Result<Dir, StoreError> {
        make_top(self.root())
    }

    /// Opens a subdirectory of `rcx-imagefs`; `None` if it is missing.
    pub(super) fn subdir(&self, subdir: Subdir) -> Result<Option<Dir>, StoreError> {
        match self.top()? {
            Some(top) => top.sub(subdir.name()),
            None => Ok(None),
        }
    }

    /// Opens a subdirectory of `rcx-imagefs`, creating it if missing.
    pub(super) fn make_subdir(&self, subdir: Subdir) -> Result<Dir, StoreError> {
        self.make_top()?.make_sub(subdir.name(), subdir.mode())
    }

    /// Creates a temporary file that will become `name` in `target`.
    pub(super) fn temp_file(&self, target: Dir, name: &str) -> Result<TempFile, StoreError> {
        TempFile::new(self.make_subdir(Subdir::Tmp)?, target, name, FILE_MODE)
    }
}

/// Returns true for a store, and false for a directory that can become one. Fails for any other directory.
fn is_store(root: &Dir, path: &Path) -> Result<bool, StoreError> {
    if check_layout(root)? {
        return Ok(true);
    }
    // `create` makes `rcx-imagefs` first and `oci-layout` last. So `rcx-imagefs` without `oci-layout` means that a
    // creation is still running or was interrupted. `lost+found` is in the root of an empty ext4 filesystem.
    let names = root.names()?;
    if names.iter().all(|name| name == "lost+found") || names.iter().any(|name| name == TOP) {
        return Ok(false);
    }
    Err(StoreError::NotAStore { path: path.to_owned() })
}

/// Whether the directory has an `oci-layout` file. An unsupported version is an error.
fn check_layout(root: &Dir) -> Result<bool, StoreError> {
    let Some(file) = root.file(OCI_LAYOUT)? else { return Ok(false) };
    let path = root.path_of(OCI_LAYOUT);
    let layout: OciLayout = serde_json::from_slice(&read_bounded(&file, &path, 4096)?)
        .map_err(|source| StoreError::Json { path: path.clone(), source })?;
    match layout.version == OCI_LAYOUT_VERSION {
        true => Ok(true),
        false => Err(StoreError::Version { path, found: layout.version, supported: OCI_LAYOUT_VERSION }),
    }
}

/// Whether `rcx-imagefs` has its version file. An unsupported version is an error.
///
/// The file is missing while another process creates the directory.
fn check_version(top: &Dir) -> Result<bool, StoreError> {
    let Some(file) = top.file(VERSION_FILE)? else { return Ok(false) };
    let path = top.path_of(VERSION_FILE);
    let bytes = read_bounded(&file, &path, 4096)?;
    let found = String::from_utf8_lossy(&bytes).trim().to_owned();
    match found == VERSION {
        true => Ok(true),
        false => Err(StoreError::Version { path, found, supported: VERSION }),
    }
}

/// Creates a layout without images. Another process may already have done any of the steps.
fn create(root: &Dir) -> Result<(), StoreError> {
    make_top(root)?;
    root.make_sub(BLOBS, DIR_MODE)?.make_sub(SHA256, DIR_MODE)?;
    put_if_missing(root, root, INDEX_JSON, EMPTY_INDEX)?;
    let layout = OciLayout { version: OCI_LAYOUT_VERSION.to_owned() };
    let layout = serde_json::to_vec(&layout).expect("a struct of strings serializes to JSON");
    put_if_missing(root, root, OCI_LAYOUT, &layout)
}

/// Opens `rcx-imagefs` and checks its version; creates it if missing.
fn make_top(root: &Dir) -> Result<Dir, StoreError> {
    let top = root.make_sub(TOP, DIR_MODE)?;
    if !check_version(&top)? {
        put_if_missing(root, &top, VERSION_FILE, format!("{VERSION}\n").as_bytes())?;
        check_version(&top)?;
    }
    Ok(top)
}

fn put_if_missing(root: &Dir, target: &Dir, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let path = target.path_of(name);
    let tmp = root.make_sub(TOP, DIR_MODE)?.make_sub(Subdir::Tmp.name(), Subdir::Tmp.mode())?;
    let mut temp = TempFile::new(tmp, target.reopen()?, name, FILE_MODE)?;
    temp.write_all(bytes).map_err(|error| StoreError::from_write(&path, error))?;
    temp.commit_if_missing()?;
    Ok(())
}

/// Makes a path absolute. Removes slashes and dots at its end, which would make a link in place of the store invisible.
fn absolute(path: &Path) -> Result<PathBuf, StoreError> {
    Ok(std::path::absolute(path).at("make absolute", path)?.components().collect())
}

/// Creates a directory and its parents, and syncs them to disk. The directory has this mode, whatever the umask.
fn create_dir_all(path: &Path, mode: u32) -> Result<(), StoreError> {
    // A dangling symlink counts as existing: the caller's open then reports it.
    let Some(parent) = path.parent().filter(|_| fs::symlink_metadata(path).is_err()) else { return Ok(()) };
    create_dir_all(parent, DIR_MODE)?;
    os::make_directory(CWD, path, Mode::from_raw_mode(mode)).at("create", path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(parent, flags, Mode::empty()).at("open", parent)?;
    Ok(rustix::fs::fsync(opened).at("sync", parent)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn reopen(path: &Path) -> Result<Store, StoreError> {
        Store::open(path)?;
        Store::open_or_create(path)
    }

    #[test]
    fn sixteen_concurrent_creations_all_succeed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/store");
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..16).map(|_| scope.spawn(|| Store::open_or_create(&path).map(drop))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
        });
        let store = Store::open(&path).unwrap();
        assert_eq!(fs::read(store.index_json_path()).unwrap(), EMPTY_INDEX);
        assert!(store.make_subdir(Subdir::Tmp).unwrap().names().unwrap().is_empty());
    }

    #[test]
    fn missing_and_foreign_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Store::open(&dir.path().join("no")), Err(StoreError::Missing { .. })));
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Missing { .. })));
        assert!(!Store::exists(&dir.path().join("no")).unwrap());
        assert!(!Store::exists(dir.path()).unwrap());
        fs::write(dir.path().join("diary.txt"), "private").unwrap();
        assert!(matches!(Store::exists(dir.path()), Err(StoreError::NotAStore { .. })));
        assert!(matches!(Store::open(dir.path()), Err(StoreError::NotAStore { .. })));
        assert!(matches!(Store::open_or_create(dir.path()), Err(StoreError::NotAStore { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let file = dir.path().join("diary.txt");
        assert!(matches!(Store::open_or_create(&file), Err(StoreError::WrongFileType { .. })));
    }

    #[test]
    fn interrupted_creation_is_completed() {
        // The state after each step: everything that later steps create is missing.
        for missing in [
            &["oci-layout"][..],
            &["oci-layout", "index.json"],
            &["oci-layout", "index.json", "blobs"],
            &["oci-layout", "index.json", "blobs", "rcx-imagefs/version"],
        ] {
            let dir = tempfile::tempdir().unwrap();
            Store::open_or_create(dir.path()).unwrap();
            for name in missing {
                let path = dir.path().join(name);
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            }
            Store::open_or_create(dir.path()).unwrap();
            reopen(dir.path()).unwrap();
            assert_eq!(fs::read(dir.path().join(INDEX_JSON)).unwrap(), EMPTY_INDEX);
        }
    }

    #[test]
    fn missing_index_json_is_not_replaced_by_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        fs::remove_file(store.index_json_path()).unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        assert!(!store.index_json_path().exists());
    }

    #[test]
    fn unsupported_versions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        Store::open_or_create(dir.path()).unwrap();
        fs::write(dir.path().join("rcx-imagefs/version"), "2\n").unwrap();
        let error = reopen(dir.path()).unwrap_err();
        assert!(matches!(&error, StoreError::Version { found, .. } if found == "2"), "{error:?}");
        fs::write(dir.path().join("rcx-imagefs/version"), "1\n").unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
        assert!(matches!(reopen(dir.path()), Err(StoreError::Version { .. })));
        fs::write(dir.path().join("oci-layout"), "{").unwrap();
        assert!(matches!(reopen(dir.path()), Err(StoreError::Json { .. })));
    }

    #[test]
    fn subdirectory_that_is_a_symlink_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let indexes = dir.path().join("rcx-imagefs/indexes");
        symlink(target.path(), &indexes).unwrap();
        assert!(matches!(store.make_subdir(Subdir::Indexes), Err(StoreError::WrongFileType { .. })));
        fs::remove_file(&indexes).unwrap();
        store.make_subdir(Subdir::Indexes).unwrap();
    }

    #[test]
    fn unverified_bytes_and_locks_are_not_accessible_to_other_users() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        for subdir in [Subdir::Partial, Subdir::Tmp, Subdir::Locks] {
            store.make_subdir(subdir).unwrap();
            let path = dir.path().join(TOP).join(subdir.name());
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o700);
        }
    }

    #[test]
    fn only_files_of_dead_writers_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let tmp = dir.path().join("rcx-imagefs/tmp");
        fs::write(tmp.join("1-0-index.json"), "{\"schema").unwrap();
        let mut live = store.temp_file(store.root().reopen().unwrap(), "live").unwrap();
        live.write_all(b"half").unwrap();
        Store::open_or_create(dir.path()).unwrap();
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 1);
        live.commit().unwrap();
        assert_eq!(fs::read(dir.path().join("live")).unwrap(), b"half");
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
    }
}
