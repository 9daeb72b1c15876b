//! What goes into each image.
//!
//! `signet-ca` runs as nobody in particular; `signetd` as root, because the capabilities it needs reach only a root
//! process of a pod. The tests' images are for the pods of test clusters and hold programs that the project did not write.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::debian::Package;
use super::layer::{Layer, Node};
use super::oci::Image;
use super::{libraries, sbom};
use crate::{search_path, step, workspace};

/// What an image is made of.
pub(super) struct Recipe {
    pub(super) name: &'static str,
    description: &'static str,
    /// Programs of the workspace, and the package of each.
    ours: &'static [(&'static str, &'static str)],
    /// Programs of this machine.
    theirs: &'static [&'static str],
    /// busybox, with a link for each applet.
    busybox: bool,
    entrypoint: &'static [&'static str],
    user: &'static str,
}

/// The product.
pub(super) const PRODUCT: [Recipe; 2] = [
    Recipe {
        name: "signetd",
        description: "Signet's node engine: identities and mTLS for the pods of a node",
        ours: &[("signetd", "signet-agent"), ("signet", "signet-cli")],
        theirs: &[],
        busybox: false,
        entrypoint: &["/usr/bin/signetd"],
        user: "0:0",
    },
    Recipe {
        name: "signet-ca",
        description: "Signet's certificate authority",
        ours: &[("signet-ca", "signet-ca")],
        theirs: &[],
        busybox: false,
        entrypoint: &["/usr/bin/signet-ca"],
        user: "65532:65532",
    },
];

/// For the pods of test clusters.
pub(super) const FOR_TESTS: [Recipe; 2] = [
    Recipe {
        name: "signet-pause",
        description: "Holds the namespaces of a pod",
        ours: &[],
        theirs: &[],
        busybox: true,
        entrypoint: &["/bin/busybox", "sleep", "2147483647"],
        user: "65532:65532",
    },
    Recipe {
        name: "signet-workload",
        description: "Clients and servers for the pods of a test",
        ours: &[("signet-probe", "signet-testkit"), ("signet-load", "signet-testkit")],
        theirs: &["curl", "nginx"],
        busybox: true,
        entrypoint: &["/bin/sh"],
        user: "0:0",
    },
];

impl Recipe {
    /// Gathers the image from built binaries and this machine.
    ///
    /// # Errors
    /// A program or a library is missing.
    pub(super) fn gather(&self, binaries: &Path) -> Result<Image> {
        let mut layer = Layer::default();
        let mut programs = self.programs(binaries)?;
        if self.busybox {
            programs.push(("/bin/busybox".to_owned(), put_busybox_links(&mut layer)?));
        }
        for (path, program) in &programs {
            layer.put_file(path, program, 0o755);
        }
        let packages = put_libraries(&mut layer, programs.iter().map(|(_, program)| program.as_path()))?;
        put_base(&mut layer);
        let crates: Vec<&str> = self.ours.iter().map(|(_, package)| *package).collect();
        let sbom = sbom::of(self.name, &crates, &packages)?;
        let bill = Node::Text { bytes: sbom.clone().into_bytes() };
        layer.put(&format!("/usr/share/sbom/{}.cdx.json", self.name), bill);
        Ok(Image { name: self.name, reference: self.reference(), layer, config: self.config(), sbom })
    }

    /// The chart's default, so that an imported image is found.
    fn reference(&self) -> String {
        format!("localhost/{}:{VERSION}", self.name)
    }

    /// Each program's path in the image and on this machine.
    fn programs(&self, binaries: &Path) -> Result<Vec<(String, PathBuf)>> {
        let ours = self.ours.iter().map(|(name, _)| strip(name, binaries));
        let theirs = self.theirs.iter().map(|name| {
            search_path::find(name)
                .with_context(|| format!("{name} is not installed: run `cargo xtask setup`"))
        });
        let in_image = |path: PathBuf| Some((format!("/usr/bin/{}", path.file_name()?.to_str()?), path));
        ours.chain(theirs).map(|path| in_image(path?).context("a program has a name")).collect()
    }

    fn config(&self) -> Value {
        json!({
            "User": self.user, "Entrypoint": self.entrypoint, "WorkingDir": "/",
            "Env": ["PATH=/usr/bin:/usr/sbin:/bin:/sbin"],
            "Labels": {
                "org.opencontainers.image.title": self.name,
                "org.opencontainers.image.description": self.description,
                "org.opencontainers.image.version": VERSION,
                "org.opencontainers.image.licenses": "Apache-2.0",
                "org.opencontainers.image.revision": revision(),
            },
        })
    }
}

/// A program without its debug information, which is most of it; its symbols stay, for backtraces. Its build id goes too: it
/// is a hash over the paths in the debug information, and the only other thing that tells in which folder it was built.
fn strip(name: &str, binaries: &Path) -> Result<PathBuf> {
    let folder = binaries.join("stripped");
    fs::create_dir_all(&folder)?;
    let (from, to) = (binaries.join(name), folder.join(name));
    let mut command = Command::new("strip");
    command.args(["--strip-debug", "--remove-section=.note.gnu.build-id"]).arg("-o").arg(&to).arg(&from);
    step::output(&mut command)
        .with_context(|| format!("cannot strip {}: is it built, and binutils there?", from.display()))?;
    Ok(to)
}

/// The libraries of all programs at their own paths, with the licences of the packages they are from.
fn put_libraries<'a>(
    layer: &mut Layer,
    programs: impl Iterator<Item = &'a Path> + Clone,
) -> Result<BTreeSet<Package>> {
    let mut packages: BTreeSet<Package> = programs.clone().filter_map(Package::of).collect();
    for program in programs {
        for library in libraries::of(program)? {
            let path = library.to_str().context("a library's path is text")?;
            layer.put_file(path, &library.canonicalize()?, 0o755);
            packages.extend(Package::of(&library));
        }
    }
    for package in &packages {
        if let Some(licence) = package.licence() {
            layer.put_file(&format!("/usr/share/doc/{}/copyright", package.name), &licence, 0o644);
        }
    }
    Ok(packages)
}

/// Links like those of busybox' own installer; returns busybox.
fn put_busybox_links(layer: &mut Layer) -> Result<PathBuf> {
    let busybox =
        search_path::find("busybox").context("busybox is not installed: run `cargo xtask setup`")?;
    let applets = step::output(Command::new(&busybox).arg("--list")).context("busybox lists no applets")?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer.put(&format!("/bin/{applet}"), Node::Link { to: "busybox".to_owned() });
    }
    Ok(busybox)
}

/// Names for user ids, and places to write.
fn put_base(layer: &mut Layer) {
    let text = |text: &str| Node::Text { bytes: text.into() };
    layer.put(
        "/etc/passwd",
        text("root:x:0:0:root:/:/bin/sh\nsignet:x:65532:65532:signet:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    );
    layer.put("/etc/group", text("root:x:0:\nsignet:x:65532:\nnogroup:x:65534:\n"));
    layer.put("/tmp", Node::Folder { mode: 0o1777 });
    layer.put_file("/usr/share/doc/signet/LICENSE", &workspace::root().join("LICENSE"), 0o644);
}

/// The commit, where there is one.
fn revision() -> String {
    let mut git = Command::new("git");
    let said = step::output(git.current_dir(workspace::root()).args(["rev-parse", "HEAD"]));
    said.map_or_else(|| "unknown".to_owned(), |revision| revision.trim().to_owned())
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
