package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// IPAMConfiguration tunes address management. There is one, named "default".
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={ipamconfig,ipamconfigs},categories=calico
// +kubebuilder:printcolumn:name="StrictAffinity",type=boolean,JSONPath=`.spec.strictAffinity`
// +kubebuilder:printcolumn:name="AutoAllocateBlocks",type=boolean,JSONPath=`.spec.autoAllocateBlocks`
// +kubebuilder:printcolumn:name="MaxBlocksPerHost",type=integer,JSONPath=`.spec.maxBlocksPerHost`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="there is only one IPAMConfiguration, named default",fieldPath=".metadata"
type IPAMConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec IPAMConfigurationSpec `json:"spec"`
}

// IPAMConfigurationSpec is the configuration.
//
// +kubebuilder:validation:XValidation:rule="self.strictAffinity || self.autoAllocateBlocks",message="with strictAffinity and autoAllocateBlocks both false no address could be assigned",fieldPath=".autoAllocateBlocks"
// +kubebuilder:validation:XValidation:rule="self.?maxBlocksPerHost.orValue(0) == 0 || self.strictAffinity",message="maxBlocksPerHost needs strictAffinity",fieldPath=".maxBlocksPerHost"
type IPAMConfigurationSpec struct {
	// StrictAffinity forbids a node to use addresses of blocks that are not its own.
	// +kubebuilder:default=false
	StrictAffinity bool `json:"strictAffinity"`
	// MaxBlocksPerHost limits the blocks of one node; 0 means the built-in limit of 20.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	MaxBlocksPerHost int32 `json:"maxBlocksPerHost,omitempty"`
	// AutoAllocateBlocks lets a node take a further block when its own are full. Unset means true.
	// +kubebuilder:default=true
	AutoAllocateBlocks *bool `json:"autoAllocateBlocks,omitempty"`
	// KubeVirtVMAddressPersistence keeps the address of a KubeVirt machine over its pods. Unset means Enabled.
	// +kubebuilder:validation:Enum=Enabled;Disabled
	KubeVirtVMAddressPersistence *string `json:"kubeVirtVMAddressPersistence,omitempty"`
	// IPCooldownSeconds is how long a released address is not assigned again.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1200
	IPCooldownSeconds int32 `json:"ipCooldownSeconds,omitempty"`
}

// DefaultMaxBlocksPerHost is the limit that MaxBlocksPerHost 0 stands for.
const DefaultMaxBlocksPerHost = 20

// NewIPAMConfiguration is the configuration that holds where there is none.
func NewIPAMConfiguration() *IPAMConfiguration {
	c := &IPAMConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: GroupVersion, Kind: "IPAMConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: DefaultName},
	}
	c.Default()
	return c
}

// Default turns on autoAllocateBlocks unless it is given.
func (i *IPAMConfiguration) Default() {
	if i.Spec.AutoAllocateBlocks == nil {
		i.Spec.AutoAllocateBlocks = new(true)
	}
}

// AutoAllocates tells whether a node may take a further block when its own are full.
func (s *IPAMConfigurationSpec) AutoAllocates() bool {
	return s.AutoAllocateBlocks == nil || *s.AutoAllocateBlocks
}

// Validate checks the configuration.
func (i *IPAMConfiguration) Validate() error {
	var c checker
	c.object(i, defaultName)
	s, spec := &i.Spec, path("spec")
	if !s.StrictAffinity && !s.AutoAllocates() {
		c.bad(spec.at("autoAllocateBlocks"), false, "leaves no address to assign while strictAffinity is false", "write autoAllocateBlocks: true, or strictAffinity: true")
	}
	between(&c, spec.at("maxBlocksPerHost"), s.MaxBlocksPerHost, 0, 1_000_000)
	if s.MaxBlocksPerHost > 0 && !s.StrictAffinity {
		c.bad(spec.at("maxBlocksPerHost"), s.MaxBlocksPerHost, "does not limit anything while nodes may borrow addresses", "write strictAffinity: true, or maxBlocksPerHost: 0")
	}
	if s.KubeVirtVMAddressPersistence != nil {
		oneOf(&c, spec.at("kubeVirtVMAddressPersistence"), *s.KubeVirtVMAddressPersistence, "Enabled", "Disabled")
	}
	between(&c, spec.at("ipCooldownSeconds"), s.IPCooldownSeconds, 0, 1200)
	return c.err()
}
