package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ClusterInformation identifies the cluster. There is one, named "default", written by the system.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,path=clusterinformations,shortName={clusterinfo,clusterinfos},categories=calico
// +kubebuilder:printcolumn:name="ClusterGUID",type=string,JSONPath=`.spec.clusterGUID`
// +kubebuilder:printcolumn:name="ClusterType",type=string,JSONPath=`.spec.clusterType`
// +kubebuilder:printcolumn:name="CalicoVersion",type=string,JSONPath=`.spec.calicoVersion`
// +kubebuilder:printcolumn:name="DatastoreReady",type=boolean,JSONPath=`.spec.datastoreReady`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="there is only one ClusterInformation, named default",fieldPath=".metadata"
type ClusterInformation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec ClusterInformationSpec `json:"spec"`
}

// ClusterInformationSpec is the information.
type ClusterInformationSpec struct {
	// ClusterGUID is drawn once, at the first start.
	ClusterGUID string `json:"clusterGUID,omitempty"`
	// ClusterType lists what the cluster is made of, separated by commas ("k8s,bgp").
	ClusterType string `json:"clusterType,omitempty"`
	// CalicoVersion is the version of the kube-controllers that lead.
	CalicoVersion string `json:"calicoVersion,omitempty"`
	// DatastoreReady false stops everything that writes, during a migration.
	DatastoreReady *bool `json:"datastoreReady,omitempty"`
	// Variant of the software.
	Variant string `json:"variant,omitempty"`
}

// Locked tells whether the datastore is locked for a migration: new addresses and endpoints have to wait.
func (i *ClusterInformation) Locked() bool {
	return i.Spec.DatastoreReady != nil && !*i.Spec.DatastoreReady
}

// DefaultName is the name of the kinds that exist once in a cluster.
const DefaultName = "default"

// Default leaves the information as it is.
func (i *ClusterInformation) Default() {}

// Validate checks the information.
func (i *ClusterInformation) Validate() error {
	var c checker
	c.object(i, defaultName)
	return c.err()
}
