//! A Service to its TCP ports, its VIPs, and where else it is reached.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service as Manifest, ServicePort as Port, ServiceSpec, ServiceStatus};
use signet_manifests::{Document, DocumentError};

use crate::discovery::addresses;
use crate::state::{External, Service, ServicePort};

/// The Service; `None` for ExternalName, which is nothing but a DNS alias.
pub(crate) fn service(document: &Document, cluster_domain: &str) -> Result<Option<Service>, DocumentError> {
    let manifest: Manifest = document.parse()?;
    let spec = manifest.spec.unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        return Ok(None);
    }
    let key = document.key();
    let vips = vips(document, &spec)?;
    let external = match vips.is_empty() {
        // kube-proxy leaves headless ones alone.
        true => External::default(),
        false => external(document, &spec, manifest.status.as_ref())?,
    };
    Ok(Some(Service {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        hostname: format!("{}.{}.svc.{cluster_domain}", key.name, key.namespace).into(),
        vips,
        ports: ports(document, &spec)?,
        affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
        local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external,
    }))
}

/// As kube-proxy sees it (kubernetes `pkg/proxy/serviceport.go`, `pkg/proxy/iptables/proxier.go`), less what cannot be kept
/// here and stays kube-proxy's: `loadBalancerSourceRanges`, and a node's own endpoints for `externalTrafficPolicy: Local`.
fn external(
    document: &Document,
    spec: &ServiceSpec,
    status: Option<&ServiceStatus>,
) -> Result<External, DocumentError> {
    // What a tunnel on a developer's machine calls itself, a loopback address, is no reason to lose the VIPs.
    let address = |text: &String| addresses::unicast(document, "spec.externalIPs", text).ok();
    let own = spec.external_ips.iter().flatten();
    let is_everywhere = spec.external_traffic_policy.as_deref() != Some("Local");
    Ok(External {
        addresses: own.chain(balancers(spec, status)).filter_map(address).collect(),
        node_ports: if is_everywhere { node_ports(document, spec)? } else { Vec::new() },
    })
}

/// The addresses of a load balancer that leaves a packet's destination as it is: of another kind, kube-proxy answers for none.
fn balancers<'a>(spec: &ServiceSpec, status: Option<&'a ServiceStatus>) -> impl Iterator<Item = &'a String> {
    let is_open = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.load_balancer_source_ranges.as_ref().is_none_or(Vec::is_empty);
    let balancer = status.filter(|_| is_open).and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    ingress.filter(|one| one.ip_mode.as_deref() != Some("Proxy")).filter_map(|one| one.ip.as_ref())
}

fn node_ports(document: &Document, spec: &ServiceSpec) -> Result<Vec<ServicePort>, DocumentError> {
    let chosen = |port: &i32| *port != 0;
    tcp_ports(spec)
        .filter_map(|(index, port)| Some((index, port, port.node_port.filter(chosen)?)))
        .map(|(index, port, number)| {
            let field = format!("spec.ports[{index}].nodePort");
            Ok(named(port, addresses::port(document, &field, number.into())?))
        })
        .collect()
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
    tcp_ports(spec)
        .map(|(index, port)| {
            let field = format!("spec.ports[{index}].port");
            Ok(named(port, addresses::port(document, &field, port.port.into())?))
        })
        .collect()
}

fn tcp_ports(spec: &ServiceSpec) -> impl Iterator<Item = (usize, &Port)> {
    let is_tcp = |port: &Port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    spec.ports.iter().flatten().enumerate().filter(move |(_, port)| is_tcp(port))
}

fn named(port: &Port, number: u16) -> ServicePort {
    ServicePort { name: port.name.as_deref().unwrap_or_default().into(), port: number }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::testing;

    fn external(spec: &str, status: &str) -> External {
        let yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\nstatus: {status}\n"
        );
        service(&testing::document(&yaml), "cluster.local").unwrap().unwrap().external
    }

    fn addresses(spec: &str, status: &str) -> Vec<String> {
        external(spec, status).addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn it_is_reached_at_external_and_load_balancers_addresses() {
        let status = "{loadBalancer: {ingress: [{ip: 192.0.2.1}, {hostname: lb.example}, {ip: 192.0.2.2, ipMode: Proxy}]}}";
        let ports = "ports: [{port: 80}], clusterIP: 10.96.0.1";
        let both = format!("{{type: LoadBalancer, {ports}, externalIPs: [198.51.100.1]}}");
        assert_eq!(addresses(&both, status), ["198.51.100.1", "192.0.2.1"]);
        assert_eq!(addresses(&format!("{{{ports}}}"), status), [""; 0], "an address that it has lost");
        let ranges = format!("{{type: LoadBalancer, {ports}, loadBalancerSourceRanges: [203.0.113.0/24]}}");
        assert_eq!(addresses(&ranges, status), [""; 0], "kube-proxy says who may");
        let headless = "{type: LoadBalancer, ports: [{port: 80}], clusterIP: None}";
        assert_eq!(external(headless, status), External::default());
    }

    #[test]
    fn it_is_reached_at_ports_of_every_node_unless_those_of_each_differ() {
        let ports = "[{name: a, port: 80, nodePort: 30080}, {name: b, port: 81}, {name: c, port: 82, nodePort: 30082, protocol: UDP}]";
        let spec = |policy: &str| {
            format!(
                "{{type: NodePort, clusterIP: 10.96.0.1, ports: {ports}, externalTrafficPolicy: {policy}}}"
            )
        };
        let expected = [ServicePort { name: "a".into(), port: 30080 }];
        assert_eq!(external(&spec("Cluster"), "{}").node_ports, expected);
        assert_eq!(external(&spec("Local"), "{}").node_ports, []);
    }
}
