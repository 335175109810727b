// Package api holds the nouns of Muslin: every resource kind of the projectcalico.org/v3 group, written once.
//
// It owns, for each kind, the Go type (wire-compatible with Calico's JSON), its defaults, its validation and its CRD
// schema (kubebuilder markers); the one registry of kinds (Kinds); the one codec (Decode for users' documents,
// DecodeStored and Encode for what datastores hold); and the rules that span objects (CheckCreate, CheckUpdate,
// CheckDelete), which the datastore layer applies to every write.
//
// It refuses everything else: it does no I/O, reads no clock, logs nothing, knows no storage path and no wire message.
// Functions here are pure; what they return depends on their arguments alone. Backends translate the logical names used
// here (a block is named by its CIDR) to their own keys.
//
// Three layers of checks meet here, each a subset of the next: the CRD schemas in deploy/chart/crds (all that a Kubernetes
// API server can see of one object), Object.Validate and ValidateUpdate (all that can be seen of one object and its
// predecessor), and the Check functions (all that needs other objects). Each failure names the field, its value, what
// is wrong, and what to write instead.
//
// +kubebuilder:object:generate=true
// +groupName=projectcalico.org
// +versionName=v3
package api
