//! A Service to its VIPs and TCP ports.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service as Manifest, ServiceSpec};
use signet_manifests::{Document, DocumentError};

use crate::discovery::addresses;
use crate::state::{Service, ServicePort};

/// The Service; `None` for ExternalName, which is nothing but a DNS alias.
pub(crate) fn service(document: &Document, cluster_domain: &str) -> Result<Option<Service>, DocumentError> {
    let manifest: Manifest = document.parse()?;
    let spec = manifest.spec.unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        return Ok(None);
    }
    let key = document.key();
    Ok(Some(Service {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        hostname: format!("{}.{}.svc.{cluster_domain}", key.name, key.namespace).into(),
        vips: vips(document, &spec)?,
        ports: ports(document, &spec)?,
        affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
        local: spec.internal_traffic_policy.as_deref() == Some("Local"),
    }))
}

fn vips(document: &Document, spec: &ServiceSpec) -> Result<Vec<IpAddr>, DocumentError> {
    let texts: Vec<&str> = match spec.cluster_ips.as_deref() {
        None | Some([]) => spec.cluster_ip.as_deref().into_iter().collect(),
        Some(all) => all.iter().map(String::as_str).collect(),
    };
    let vips = texts.into_iter().filter(|text| !text.is_empty() && *text != "None");
    vips.map(|text| addresses::unicast(document, "spec.clusterIPs", text)).collect()
}

fn ports(document: &Document, spec: &ServiceSpec) -> Result<Vec<ServicePort>, DocumentError> {
    let tcp = |protocol: Option<&str>| protocol.is_none_or(|protocol| protocol == "TCP");
    let ports = spec.ports.iter().flatten().enumerate().filter(|(_, port)| tcp(port.protocol.as_deref()));
    ports
        .map(|(index, port)| {
            let number = addresses::port(document, &format!("spec.ports[{index}].port"), port.port.into())?;
            Ok(ServicePort { name: port.name.as_deref().unwrap_or_default().into(), port: number })
        })
        .collect()
}
