//! The cluster's certificates, keys and tokens: made anew for each cluster, with the API server as their only judge.
//!
//! Components and people authenticate by random tokens; the kubelets demand a client certificate of the API server, as
//! on real clusters. Nothing here is Signet's: `signet-ca` has its own root.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Writes the certificate authority, the API server's certificates, and the key of service account tokens.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(directory: &Path, api_server_names: &[&str]) -> Result<()> {
    let key = KeyPair::generate()?;
    let ca = authority("signet-test-cluster");
    write_pem(directory, "ca", &ca.self_signed(&key)?.pem(), &key)?;
    let issuer = Issuer::new(ca, key);
    let names = api_server_names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let mut server = leaf(names, "kube-apiserver", "kubernetes", ExtendedKeyUsagePurpose::ServerAuth)?;
    server.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    issue(directory, "apiserver", &server, &issuer)?;
    let kubelet_client = leaf(
        Vec::new(),
        "kube-apiserver-kubelet-client",
        "system:masters",
        ExtendedKeyUsagePurpose::ClientAuth,
    )?;
    issue(directory, "kubelet-client", &kubelet_client, &issuer)?;
    let tokens = KeyPair::generate()?;
    fs::write(directory.join("service-account.pub"), tokens.public_key_pem())?;
    write_secret(&directory.join("service-account.key"), &tokens.serialize_pem())
}

/// A random token for each user, by name and group, written as the API server reads them.
///
/// # Errors
/// The file cannot be written, or there is no randomness.
pub(crate) fn write_tokens(path: &Path, users: &[(&str, &str)]) -> Result<Vec<String>> {
    let tokens = users.iter().map(|_| token()).collect::<Result<Vec<_>>>()?;
    let line =
        |(token, (user, group)): (&String, &(&str, &str))| format!("{token},{user},{user},\"{group}\"\n");
    let lines: String = tokens.iter().zip(users).map(line).collect();
    write_secret(path, &lines)?;
    Ok(tokens)
}

/// Writes a kubeconfig for one user.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write_kubeconfig(path: &Path, server: &str, ca: &Path, token: &str) -> Result<()> {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: signet\n\
         clusters: [{{name: signet, cluster: {{server: \"{server}\", certificate-authority: {}}}}}]\n\
         users: [{{name: signet, user: {{token: {token}}}}}]\n\
         contexts: [{{name: signet, context: {{cluster: signet, user: signet}}}}]\n",
        ca.display()
    );
    write_secret(path, &text)
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn leaf(
    names: Vec<String>,
    user: &str,
    group: &str,
    usage: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, group);
    Ok(params)
}

fn issue(
    directory: &Path,
    name: &str,
    params: &CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<()> {
    let key = KeyPair::generate()?;
    write_pem(directory, name, &params.signed_by(&key, issuer)?.pem(), &key)
}

fn write_pem(directory: &Path, name: &str, certificate: &str, key: &KeyPair) -> Result<()> {
    let path = directory.join(name).with_extension("crt");
    fs::write(&path, certificate).with_context(|| format!("cannot write {}", path.display()))?;
    write_secret(&directory.join(name).with_extension("key"), &key.serialize_pem())
}

/// Only root may read it: whoever has an administrator's token is root on this machine.
fn write_secret(path: &Path, text: &str) -> Result<()> {
    let file = File::options().create(true).write(true).truncate(true).mode(0o600).open(path);
    let write = file.and_then(|mut file| file.write_all(text.as_bytes()));
    write.with_context(|| format!("cannot write {}", path.display()))
}

fn token() -> Result<String> {
    let mut bytes = [0; 24];
    File::open("/dev/urandom")?.read_exact(&mut bytes).context("no randomness")?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
