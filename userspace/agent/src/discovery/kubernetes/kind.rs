//! The kinds that are watched, and what is kept of each.

use signet_apiserver::Keep::{self, All, Fields};
use signet_apiserver::{Kind, Resource};

macro_rules! kinds {
    ($($name:ident: $group:literal $kind:literal $plural:literal keeps $keep:expr;)*) => {$(
        #[derive(Debug)]
        pub(super) struct $name;

        impl Kind for $name {
            const RESOURCE: Resource = Resource { group: $group, kind: $kind, plural: $plural };
            const KEEP: Keep = $keep;
        }
    )*};
}

kinds! {
    Namespaces: "" "Namespace" "namespaces" keeps Fields(&[("metadata", MODES)]);
    Nodes: "" "Node" "nodes" keeps NODE;
    ServiceCidrs: "networking.k8s.io" "ServiceCIDR" "servicecidrs" keeps SERVICE_CIDR;
    Pods: "" "Pod" "pods" keeps POD;
    Services: "" "Service" "services" keeps SERVICE;
    EndpointSlices: "discovery.k8s.io" "EndpointSlice" "endpointslices" keeps ENDPOINT_SLICE;
    AuthorizationPolicies: "security.istio.io" "AuthorizationPolicy" "authorizationpolicies" keeps POLICY;
    PeerAuthentications: "security.istio.io" "PeerAuthentication" "peerauthentications" keeps POLICY;
    WorkloadEntries: "networking.istio.io" "WorkloadEntry" "workloadentries" keeps WORKLOAD_ENTRY;
    Definitions: "apiextensions.k8s.io" "CustomResourceDefinition" "customresourcedefinitions" keeps DEFINITION;
}

const MODES: Keep = Fields(&[
    ("name", All),
    ("resourceVersion", All),
    (
        "labels",
        Fields(&[("signet.dev/mode", All), ("signet.dev/same-node", All), ("istio.io/dataplane-mode", All)]),
    ),
]);

const NODE: Keep = Fields(&[
    ("metadata", ZONE),
    ("spec", Fields(&[("podCIDR", All), ("podCIDRs", All)])),
    ("status", Fields(&[("addresses", Fields(&[("type", All), ("address", All)]))])),
]);

const SERVICE_CIDR: Keep = Fields(&[("metadata", METADATA), ("spec", Fields(&[("cidrs", All)]))]);

const ZONE: Keep = Fields(&[
    ("name", All),
    ("resourceVersion", All),
    ("labels", Fields(&[("topology.kubernetes.io/zone", All)])),
]);

const POD: Keep = Fields(&[
    ("metadata", POD_METADATA),
    (
        "spec",
        Fields(&[
            ("nodeName", All),
            ("serviceAccountName", All),
            ("hostNetwork", All),
            ("containers", CONTAINER),
            ("initContainers", CONTAINER),
        ]),
    ),
    ("status", Fields(&[("phase", All), ("podIP", All), ("podIPs", Fields(&[("ip", All)]))])),
]);

const POD_METADATA: Keep = Fields(&[
    ("name", All),
    ("namespace", All),
    ("uid", All),
    ("resourceVersion", All),
    ("labels", All),
    ("annotations", Fields(&[("kubernetes.io/config.mirror", All)])),
    ("ownerReferences", Fields(&[("kind", All), ("name", All), ("controller", All)])),
]);

const CONTAINER: Keep = Fields(&[("restartPolicy", All), ("ports", CONTAINER_PORT)]);

const CONTAINER_PORT: Keep =
    Fields(&[("name", All), ("containerPort", All), ("protocol", All), ("hostPort", All), ("hostIP", All)]);

const PORT: Keep = Fields(&[("name", All), ("port", All), ("nodePort", All), ("protocol", All)]);

const SERVICE: Keep = Fields(&[
    ("metadata", METADATA),
    (
        "spec",
        Fields(&[
            ("type", All),
            ("clusterIP", All),
            ("clusterIPs", All),
            ("sessionAffinity", All),
            ("internalTrafficPolicy", All),
            ("externalTrafficPolicy", All),
            ("externalIPs", All),
            ("loadBalancerSourceRanges", All),
            ("ports", PORT),
        ]),
    ),
    ("status", Fields(&[("loadBalancer", Fields(&[("ingress", Fields(&[("ip", All), ("ipMode", All)]))]))])),
]);

const ENDPOINT_SLICE: Keep = Fields(&[
    (
        "metadata",
        Fields(&[
            ("name", All),
            ("namespace", All),
            ("resourceVersion", All),
            ("labels", Fields(&[("kubernetes.io/service-name", All)])),
        ]),
    ),
    ("addressType", All),
    ("ports", PORT),
    ("endpoints", ENDPOINT),
]);

const ENDPOINT: Keep = Fields(&[
    ("addresses", All),
    ("conditions", Fields(&[("ready", All), ("serving", All), ("terminating", All)])),
    ("nodeName", All),
    ("zone", All),
    ("hints", Fields(&[("forZones", All), ("forNodes", All)])),
    ("targetRef", Fields(&[("kind", All)])),
]);

const METADATA: Keep = Fields(&[("name", All), ("namespace", All), ("resourceVersion", All)]);

const POLICY: Keep = Fields(&[
    (
        "metadata",
        Fields(&[
            ("name", All),
            ("namespace", All),
            ("resourceVersion", All),
            ("creationTimestamp", All),
            ("annotations", Fields(&[("istio.io/dry-run", All)])),
        ]),
    ),
    // Whole: a field that is not known must be seen to be refused.
    ("spec", All),
]);

const WORKLOAD_ENTRY: Keep = Fields(&[
    (
        "metadata",
        Fields(&[
            ("name", All),
            ("namespace", All),
            ("uid", All),
            ("resourceVersion", All),
            ("labels", All),
            ("annotations", Fields(&[("signet.dev/node", All)])),
        ]),
    ),
    (
        "spec",
        Fields(&[
            ("address", All),
            ("ports", All),
            ("labels", All),
            ("locality", All),
            ("serviceAccount", All),
        ]),
    ),
]);

const DEFINITION: Keep = Fields(&[
    ("metadata", METADATA),
    ("spec", Fields(&[("versions", Fields(&[("name", All), ("served", All)]))])),
    ("status", Fields(&[("conditions", Fields(&[("type", All), ("status", All)]))])),
]);
