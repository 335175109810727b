package api

import (
	"math"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Lease is a lock that ends by itself: whoever holds it renews it, and may be followed by another when it has not done so
// for as long as the lease lasts. Which of several processes leads is decided by it, with or without Kubernetes.
//
// Nobody compares clocks: a holder counts from before its last renewal, others from when they first saw that one, each on
// a clock of its own. See package kube-controllers/leader.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:printcolumn:name="Holder",type=string,JSONPath=`.spec.holder`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Lease struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec LeaseSpec `json:"spec"`
}

// LeaseSpec is who holds a lease.
type LeaseSpec struct {
	// Holder is the process that holds it; empty if it was given back.
	Holder string `json:"holder,omitempty"`
	// Seconds is how long the holder may be silent.
	// +kubebuilder:validation:Minimum=1
	Seconds int32 `json:"seconds"`
	// Term grows each time that the lease changes hands.
	Term int64 `json:"term"`
	// Renewals counts what the holder has renewed it: a lease in which it does not grow is not held any more.
	Renewals int64 `json:"renewals"`
}

// Default leaves the lease as it is.
func (l *Lease) Default() {}

// Validate checks the lease.
func (l *Lease) Validate() error {
	var c checker
	c.object(l, subdomainName)
	between(&c, path("spec").at("seconds"), l.Spec.Seconds, 1, math.MaxInt32)
	return c.err()
}
