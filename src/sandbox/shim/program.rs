//! The image and the program of a call.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::ShimError;
use super::choice::command_in_mount;
use super::image_home::{ImageHome, LocatedImage};
use super::rewrite::CallRewrite;
use crate::roots::PrivateRoot;
use crate::sandbox::isolate::{DirRule, components};
use crate::sandbox::view::{MountContent, RootView};
use crate::sandbox::{DEFAULT_PATH, User};

/// Finds the image of a call, and the command's path in the image if the command lies in the mount.
///
/// `name` is the image's path below the mountpoint; `None` if the first word of the command chooses the image.
///
/// # Errors
/// There is no such image, or the command lies in another image than the one with `name`.
pub(super) fn find_image(
    images: &ImageHome,
    name: Option<&Path>,
    word: Option<&OsStr>,
) -> Result<(LocatedImage, Option<PathBuf>), ShimError> {
    let word = word.unwrap_or_default();
    let command = match command_in_mount(word, || Ok(images.mountpoint().map(Path::to_owned)))? {
        Some(path) => Some(split_command(images, &path)?),
        None => None,
    };
    let find = |name: &Path| images.image(name)?.ok_or_else(|| ShimError::NotAnImage(name.into()));
    match (name.map(find).transpose()?, command) {
        (Some(named), None) => Ok((named, None)),
        (Some(named), Some((of_command, _))) if named.name != of_command.name => {
            Err(ShimError::OtherImage { program: word.to_owned(), other: of_command.name, image: named.name })
        }
        (_, Some((of_command, path))) => Ok((of_command, Some(path))),
        (None, None) => Err(ShimError::NotAnImage(word.into())),
    }
}

/// Splits the path of a command below the mountpoint into its image and its path in the image.
fn split_command(images: &ImageHome, path: &Path) -> Result<(LocatedImage, PathBuf), ShimError> {
    let mut name = PathBuf::new();
    for part in path {
        name.push(part);
        // Otherwise a directory of names, such as `lab`.
        if let Some(named) = images.image(&name)? {
            let inside = path.strip_prefix(&name).unwrap_or(Path::new(""));
            return Ok((named, Path::new("/").join(inside)));
        }
    }
    Err(ShimError::NotAnImage(images.mountpoint().unwrap_or(Path::new("")).join(path)))
}

/// Finds the file of the command in the root of `image`, and returns the path that takes the place of the command's first
/// word; `None` if the word stays.
///
/// `command` is the path in the image of a command that lies in the mount. A program in a directory that isolate has yet to
/// mount, such as the box, is not checked: it may be the student's.
///
/// # Errors
/// [`ShimError::Program`]: the program certainly does not exist. isolate would report this as a failure of the program.
pub(super) fn find_program(
    root: &PrivateRoot,
    rewrite: &CallRewrite,
    additional: &[DirRule],
    environment: &[String],
    image: &str,
    command: Option<PathBuf>,
) -> Result<Option<PathBuf>, ShimError> {
    let Some(word) = rewrite.program().filter(|word| !word.is_empty()) else { return Ok(None) };
    let root_fd = root.fd().try_clone_to_owned();
    let mut view =
        RootView::new(root_fd.map_err(|error| ShimError::Process("duplicate a descriptor", error))?);
    for rule in rewrite.standard_rules(root.path()).iter().chain(additional) {
        let at: PathBuf = std::iter::once(OsStr::new("/")).chain(components(&rule.inside)).collect();
        view.mount(&at, MountContent::Unknown, false);
    }
    let path = rewrite.search_path(environment).unwrap_or_else(|| DEFAULT_PATH.into());
    let directory = rewrite.directory();
    // Only isolate knows the user of the box. This one owns no file of any image.
    let user = User { uid: u32::MAX - 1, gid: u32::MAX - 1 };
    let program = command.as_deref().map_or(word, Path::as_os_str);
    let found = view.find_program(program, &path, &directory, user).or_else(|fault| {
        // isolate executes a word without `/` in the working directory.
        let local = Path::new(".").join(program);
        match view.find_program(local.as_os_str(), &path, &directory, user) {
            Ok(_) if !program.as_encoded_bytes().contains(&b'/') => Ok(PathBuf::from(program)),
            _ => Err(fault),
        }
    });
    let refused = |fault| ShimError::Program { program: word.to_owned(), image: image.to_owned(), fault };
    let found = found.map_err(refused)?;
    Ok((found.as_os_str() != word).then_some(found))
}
