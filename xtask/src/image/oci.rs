//! Writes an image of one layer as an OCI layout, and as one archive of the same blobs that docker reads too.
//!
//! The layer is not compressed: its digest is then its `diff_id`, whatever compressor a machine has, and tools that push
//! compress by themselves.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layer::{self, Layer};

/// An image, before it is written.
pub(super) struct Image {
    /// `signetd`: names its files.
    pub(super) name: &'static str,
    /// `localhost/signetd:0.1.0`.
    pub(super) reference: String,
    pub(super) layer: Layer,
    /// `Entrypoint`, `User`, `Labels` and so on, see the OCI image specification.
    pub(super) config: Value,
    /// The bill of materials, which is in the layer too.
    pub(super) sbom: String,
}

/// A path, and what is there.
pub(super) type File = (String, Vec<u8>);

/// Writes `<name>/` (the layout), `<name>.tar` (the archive) and `<name>.cdx.json`; returns the manifest's digest.
///
/// # Errors
/// A file of the image cannot be read, or the folder cannot be written.
pub(super) fn write(image: &Image, folder: &Path) -> Result<String> {
    let (files, digest) = files(image)?;
    let layout = folder.join(image.name);
    let _ = fs::remove_dir_all(&layout);
    fs::create_dir_all(layout.join(BLOBS))?;
    // What only docker reads does not belong in a layout.
    for (path, bytes) in files.iter().filter(|(path, _)| path != DOCKER_MANIFEST) {
        fs::write(layout.join(path), bytes).with_context(|| format!("cannot write {path}"))?;
    }
    fs::write(folder.join(format!("{}.tar", image.name)), layer::tar_of(&files)?)?;
    fs::write(folder.join(format!("{}.cdx.json", image.name)), &image.sbom)?;
    Ok(digest)
}

/// Every file of layout and archive, and the manifest's digest.
fn files(image: &Image) -> Result<(Vec<File>, String)> {
    let layer = Blob::new(image.layer.tar()?, "application/vnd.oci.image.layer.v1.tar");
    let config = Blob::json(&config(image, &layer), "application/vnd.oci.image.config.v1+json")?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(), "layers": [layer.descriptor()],
    });
    let manifest = Blob::json(&manifest, MANIFEST)?;
    let docker = json!([{"Config": config.path(), "RepoTags": [image.reference], "Layers": [layer.path()]}]);
    let files = vec![
        (layer.path(), layer.bytes),
        (config.path(), config.bytes),
        ("index.json".to_owned(), serde_json::to_vec(&index(image, &manifest.descriptor()))?),
        (DOCKER_MANIFEST.to_owned(), serde_json::to_vec(&docker)?),
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        (manifest.path(), manifest.bytes),
    ];
    Ok((files, manifest.digest))
}

fn config(image: &Image, layer: &Blob) -> Value {
    json!({
        "created": "1970-01-01T00:00:00Z", "architecture": architecture(), "os": "linux", "config": image.config,
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
    })
}

/// containerd takes the whole name from one annotation, everybody else the tag from the other.
fn index(image: &Image, manifest: &Value) -> Value {
    let mut manifest = manifest.clone();
    let tag = image.reference.rsplit(':').next().unwrap_or_default();
    manifest["annotations"] =
        json!({"io.containerd.image.name": image.reference, "org.opencontainers.image.ref.name": tag});
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest]})
}

/// Go's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Something that is named by its hash.
struct Blob {
    bytes: Vec<u8>,
    digest: String,
    media_type: &'static str,
}

impl Blob {
    fn new(bytes: Vec<u8>, media_type: &'static str) -> Self {
        let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { bytes, digest: format!("sha256:{hash}"), media_type }
    }

    fn json(value: &Value, media_type: &'static str) -> Result<Self> {
        Ok(Self::new(serde_json::to_vec(value)?, media_type))
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BLOBS: &str = "blobs/sha256";
const DOCKER_MANIFEST: &str = "manifest.json";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::layer::Node;

    fn image(text: &str) -> Image {
        let mut layer = Layer::default();
        layer.put("/a", Node::Text { bytes: text.into() });
        let config = json!({"User": "65532:65532"});
        Image {
            name: "signet-x",
            reference: "localhost/signet-x:1".to_owned(),
            layer,
            config,
            sbom: String::new(),
        }
    }

    #[test]
    fn the_same_contents_have_the_same_digest_and_others_another() {
        let digest = |text| files(&image(text)).unwrap().1;
        assert_eq!(digest("x"), digest("x"));
        assert_ne!(digest("x"), digest("y"));
    }

    #[test]
    fn every_blob_has_the_name_of_its_hash() {
        let (files, _) = files(&image("x")).unwrap();
        let blobs: Vec<_> = files.into_iter().filter(|(path, _)| path.starts_with("blobs/")).collect();
        assert_eq!(blobs.len(), 3);
        for (path, bytes) in blobs {
            assert_eq!(path, Blob::new(bytes, MANIFEST).path());
        }
    }
}
