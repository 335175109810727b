package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// LiveMigration is the move of a workload, with its address, from one node to another. It is made from the object of
// the system that moves it.
//
// +kubebuilder:object:root=true
type LiveMigration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec LiveMigrationSpec `json:"spec"`
}

// LiveMigrationSpec says what moves and where to.
type LiveMigrationSpec struct {
	Source *LiveMigrationSource `json:"source,omitempty"`
	Target *LiveMigrationTarget `json:"target,omitempty"`
}

// LiveMigrationSource is the workload or the endpoint that moves; one of the two is set.
type LiveMigrationSource struct {
	Workload         *WorkloadID         `json:"workload,omitempty"`
	WorkloadEndpoint *WorkloadEndpointID `json:"workloadEndpoint,omitempty"`
}

// LiveMigrationTarget is the endpoint that takes over, by selector or by name; one of the two is set.
type LiveMigrationTarget struct {
	Selector         *string             `json:"selector,omitempty"`
	WorkloadEndpoint *WorkloadEndpointID `json:"workloadEndpoint,omitempty"`
}

// WorkloadID identifies a workload.
type WorkloadID struct {
	Hostname       string `json:"hostname,omitempty"`
	OrchestratorID string `json:"orchestratorID,omitempty"`
	WorkloadID     string `json:"workloadID,omitempty"`
}

// WorkloadEndpointID identifies an endpoint of a workload.
type WorkloadEndpointID struct {
	Hostname       string `json:"hostname,omitempty"`
	OrchestratorID string `json:"orchestratorID,omitempty"`
	WorkloadID     string `json:"workloadID,omitempty"`
	EndpointID     string `json:"endpointID,omitempty"`
}

// Default leaves the migration as it is.
func (m *LiveMigration) Default() {}

// Validate checks the migration.
func (m *LiveMigration) Validate() error {
	var c checker
	c.object(m, subdomainName)
	if s := m.Spec.Source; s != nil && (s.Workload == nil) == (s.WorkloadEndpoint == nil) {
		c.bad("spec.source", nil, "does not have exactly one of workload and workloadEndpoint", "write one of them")
	}
	if t := m.Spec.Target; t != nil {
		if (t.Selector == nil) == (t.WorkloadEndpoint == nil) {
			c.bad("spec.target", nil, "does not have exactly one of selector and workloadEndpoint", "write one of them")
		}
		if t.Selector != nil {
			c.selector("spec.target.selector", *t.Selector, false)
		}
	}
	return c.err()
}
