//! The admin socket: mode 0600 from its first moment, whatever the process' umask is.
//!
//! It is bound inside a fresh folder of mode 0700, gets its mode there, and is renamed to its place, which also replaces
//! the socket that a killed predecessor left. A predecessor that still answers is left alone.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::AdminError;

/// A bound socket, and its file.
#[derive(Debug)]
pub(super) struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket's file; removed on drop, unless a successor has put its own there.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl AdminSocket {
    /// Binds at `path`; its folder is made with mode 0700 where it is missing.
    ///
    /// # Errors
    /// Somebody else's socket or file is there, or the file system refuses.
    pub(super) fn bind(path: &Path) -> Result<Self, AdminError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        private_folder(folder, true)?;
        refuse_foreign(path)?;
        let nursery = folder.join(format!(".admin-{}", std::process::id()));
        let _ = fs::remove_dir_all(&nursery);
        private_folder(&nursery, false)?;
        let bound = bind_in(&nursery, path);
        let _ = fs::remove_dir_all(&nursery);
        bound
    }

    /// The listener, and the file to drop after it.
    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_in(nursery: &Path, path: &Path) -> Result<AdminSocket, AdminError> {
    let born = nursery.join("s");
    let listener = UnixListener::bind(&born).map_err(io_error("bind", path))?;
    fs::set_permissions(&born, Permissions::from_mode(0o600)).map_err(io_error("protect", path))?;
    let inode = fs::symlink_metadata(&born).map_err(io_error("read", path))?.ino();
    fs::rename(&born, path).map_err(io_error("replace", path))?;
    Ok(AdminSocket { listener, file: SocketFile { path: path.to_owned(), inode } })
}

fn private_folder(folder: &Path, and_parents: bool) -> Result<(), AdminError> {
    let made = DirBuilder::new().mode(0o700).recursive(and_parents).create(folder);
    made.map_err(io_error("make the folder", folder))
}

/// Only a socket that nobody answers on may be replaced.
fn refuse_foreign(path: &Path) -> Result<(), AdminError> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(AdminError::NoSocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(AdminError::Taken { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AdminError {
    let path = path.to_owned();
    move |source| AdminError::Io { step, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_goes_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/admin.sock");
        let (listener, file) = AdminSocket::bind(&path).unwrap().into_parts();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        drop((listener, file));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let _living = AdminSocket::bind(&path).unwrap();
        assert!(matches!(AdminSocket::bind(&path), Err(AdminError::Taken { .. })));
    }

    #[tokio::test]
    async fn a_file_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        fs::write(&path, "mine").unwrap();
        assert!(matches!(AdminSocket::bind(&path), Err(AdminError::NoSocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test]
    async fn a_successors_socket_survives_the_predecessors_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (listener, file) = AdminSocket::bind(&path).unwrap().into_parts();
        drop(listener);
        let _successor = AdminSocket::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }
}
