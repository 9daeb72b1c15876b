//! `cargo xtask image`: container images of `signetd` and `signet-ca`, without docker and without a registry.
//!
//! An image is one layer: our programs, stripped, the libraries they name, what those libraries' licences ask for, and a
//! bill of materials. No shell, no package manager. Each is written twice from the same blobs: as an OCI layout, for
//! `skopeo` and the like, and as one archive that `docker load`, `podman load` and `ctr images import` read. The same
//! inputs give the same digest: no time, no order of a file system, no path of this machine goes in.
//!
//! It pushes nothing, and builds for this machine's architecture only.

mod debian;
mod layer;
mod libraries;
mod oci;
mod recipe;
mod sbom;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, workspace};
use recipe::Recipe;

/// Options of `image`.
#[derive(Args)]
pub(crate) struct Options {
    /// From the unoptimised build, with the images that the tests' pods need
    #[arg(long)]
    dev: bool,
    /// From the programs that were built last
    #[arg(long)]
    no_build: bool,
    /// Where to; beside the programs otherwise
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Builds the images, and says where they are.
///
/// # Errors
/// Something does not compile, or a part of an image is missing.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let binaries = workspace::binaries(!options.dev);
    if !options.no_build {
        setup::ensure(if options.dev { Purpose::Cluster } else { Purpose::Build })?;
        build::binaries(!options.dev)?;
    }
    let folder = options.output.clone().unwrap_or_else(|| binaries.join(FOLDER));
    let tests = if options.dev { &recipe::FOR_TESTS[..] } else { &[] };
    for image in write_to(&folder, &binaries, tests)? {
        println!("{}  {}\n  {}", image.name, image.digest, image.archive.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// An image that was written.
pub(crate) struct Written {
    name: String,
    digest: String,
    archive: PathBuf,
}

/// Writes the images of tests from binaries that are built, beside them.
///
/// # Errors
/// A part of an image is missing.
pub(crate) fn write_for_tests() -> Result<()> {
    let binaries = workspace::binaries(false);
    write_to(&binaries.join(FOLDER), &binaries, &recipe::FOR_TESTS).map(drop)
}

fn write_to(folder: &Path, binaries: &Path, tests: &[Recipe]) -> Result<Vec<Written>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    recipe::PRODUCT.iter().chain(tests).map(|recipe| write_one(recipe, binaries, folder)).collect()
}

fn write_one(recipe: &Recipe, binaries: &Path, folder: &Path) -> Result<Written> {
    let image = recipe.gather(binaries).with_context(|| format!("image {}", recipe.name))?;
    let digest = oci::write(&image, folder).with_context(|| format!("image {}", recipe.name))?;
    let archive = folder.join(format!("{}.tar", recipe.name));
    Ok(Written { name: image.reference, digest, archive })
}

/// Below the folder of the programs; the test kit looks there.
const FOLDER: &str = "images";
