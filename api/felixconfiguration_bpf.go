package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// FelixBPFSpec holds the parameters of an eBPF dataplane. Muslin has none: the fields are accepted, checked and kept for
// compatibility, so that a configuration can go to a cluster that has one and come back; they have no effect here.
type FelixBPFSpec struct {
	BPFEnabled *bool `json:"bpfEnabled,omitempty" default:"false"`
	// +kubebuilder:validation:Pattern=`^(?i)(TunnelAddress|HostAddress)?$`
	BPFOverlayHostSourceIP *string `json:"bpfOverlayHostSourceIP,omitempty" oneof:"TunnelAddress HostAddress"`
	BPFDisableUnprivileged *bool   `json:"bpfDisableUnprivileged,omitempty"`
	// +kubebuilder:validation:Pattern=`^(?i)(Auto|Strict)?$`
	BPFJITHardening *string `json:"bpfJITHardening,omitempty" oneof:"Auto Strict"`
	// +kubebuilder:validation:Pattern=`^(?i)(Off|Info|Debug)?$`
	BPFLogLevel string `json:"bpfLogLevel,omitempty" oneof:"Off Info Debug"`
	// +kubebuilder:validation:Pattern=`^(?i)(Off|Debug)?$`
	BPFConntrackLogLevel string `json:"bpfConntrackLogLevel,omitempty" oneof:"Off Debug"`
	// +kubebuilder:validation:Pattern=`^(?i)(Auto|Userspace|BPFProgram)?$`
	BPFConntrackCleanupMode *string               `json:"bpfConntrackMode,omitempty" oneof:"Auto Userspace BPFProgram"`
	BPFConntrackTimeouts    *BPFConntrackTimeouts `json:"bpfConntrackTimeouts,omitempty"`
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	BPFIPFragTimeout                   *metav1.Duration   `json:"bpfIPFragTimeout,omitempty"`
	BPFLogFilters                      *map[string]string `json:"bpfLogFilters,omitempty"`
	BPFCTLBLogFilter                   string             `json:"bpfCTLBLogFilter,omitempty"`
	BPFDataIfacePattern                string             `json:"bpfDataIfacePattern,omitempty" form:"regexp"`
	BPFL3IfacePattern                  string             `json:"bpfL3IfacePattern,omitempty" form:"regexp"`
	BPFConnectTimeLoadBalancingEnabled *bool              `json:"bpfConnectTimeLoadBalancingEnabled,omitempty"`
	// +kubebuilder:validation:Pattern=`^(?i)(TCP|Enabled|Disabled)?$`
	BPFConnectTimeLoadBalancing *string `json:"bpfConnectTimeLoadBalancing,omitempty" oneof:"TCP Enabled Disabled"`
	// +kubebuilder:validation:Pattern=`^(?i)(Enabled|Disabled)?$`
	BPFHostNetworkedNATWithoutCTLB *string `json:"bpfHostNetworkedNATWithoutCTLB,omitempty" oneof:"Enabled Disabled"`
	// +kubebuilder:validation:Pattern=`^(?i)(Tunnel|DSR)?$`
	BPFExternalServiceMode string `json:"bpfExternalServiceMode,omitempty" oneof:"Tunnel DSR"`
	// +kubebuilder:validation:items:Pattern=`^[0-9a-fA-F:.]+(/[0-9]{1,3})?$`
	// +listType=atomic
	BPFDSROptoutCIDRs *[]string `json:"bpfDSROptoutCIDRs,omitempty" form:"cidr"`
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	BPFExtToServiceConnmark            *int64 `json:"bpfExtToServiceConnmark,omitempty" min:"0" max:"4294967295"`
	BPFKubeProxyIptablesCleanupEnabled *bool  `json:"bpfKubeProxyIptablesCleanupEnabled,omitempty"`
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	BPFKubeProxyMinSyncPeriod *metav1.Duration `json:"bpfKubeProxyMinSyncPeriod,omitempty"`
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	BPFKubeProxyHealthzPort   *int  `json:"bpfKubeProxyHealthzPort,omitempty" min:"0" max:"65535"`
	BPFPSNATPorts             *Port `json:"bpfPSNATPorts,omitempty" form:"portRange"`
	BPFMapSizeNATFrontend     *int  `json:"bpfMapSizeNATFrontend,omitempty"`
	BPFMapSizeNATBackend      *int  `json:"bpfMapSizeNATBackend,omitempty"`
	BPFMapSizeNATAffinity     *int  `json:"bpfMapSizeNATAffinity,omitempty"`
	BPFMapSizeRoute           *int  `json:"bpfMapSizeRoute,omitempty"`
	BPFMapSizeConntrack       *int  `json:"bpfMapSizeConntrack,omitempty"`
	BPFMapSizePerCPUConntrack *int  `json:"bpfMapSizePerCpuConntrack,omitempty"`
	// +kubebuilder:validation:Pattern=`^(?i)(Disabled|DoubleIfFull)?$`
	BPFMapSizeConntrackScaling string `json:"bpfMapSizeConntrackScaling,omitempty" oneof:"Disabled DoubleIfFull"`
	// +kubebuilder:validation:Minimum=1
	BPFMapSizeConntrackCleanupQueue *int  `json:"bpfMapSizeConntrackCleanupQueue,omitempty" min:"1"`
	BPFMapSizeIPSets                *int  `json:"bpfMapSizeIPSets,omitempty"`
	BPFMapSizeIfState               *int  `json:"bpfMapSizeIfState,omitempty"`
	BPFHostConntrackBypass          *bool `json:"bpfHostConntrackBypass,omitempty"`
	BPFIPFragmentReassemblyEnabled  *bool `json:"bpfIPFragmentReassemblyEnabled,omitempty"`
	// +kubebuilder:validation:Pattern=`^(?i)(Disabled|Strict|Loose)?$`
	BPFEnforceRPF         string `json:"bpfEnforceRPF,omitempty" oneof:"Disabled Strict Loose"`
	BPFPolicyDebugEnabled *bool  `json:"bpfPolicyDebugEnabled,omitempty"`
	// +kubebuilder:validation:items:Pattern=`^[a-zA-Z0-9:._+-]{1,15}$`
	// +listType=atomic
	BPFForceTrackPacketsFromIfaces *[]string `json:"bpfForceTrackPacketsFromIfaces,omitempty" form:"ifaceFilter"`
	BPFDisableGROForIfaces         string    `json:"bpfDisableGROForIfaces,omitempty" form:"regexp"`
	// +kubebuilder:validation:items:Pattern=`^[0-9a-fA-F:.]+(/[0-9]{1,3})?$`
	// +listType=atomic
	BPFExcludeCIDRsFromNAT *[]string `json:"bpfExcludeCIDRsFromNAT,omitempty" form:"cidr"`
	BPFExportBufferSizeMB  *int      `json:"bpfExportBufferSizeMB,omitempty"`
	// +kubebuilder:validation:Pattern=`^(?i)(Enabled|Disabled)?$`
	BPFRedirectToPeer string `json:"bpfRedirectToPeer,omitempty" oneof:"Enabled Disabled"`
	// +kubebuilder:validation:Pattern=`^(?i)(TC|TCX|Netkit)?$`
	BPFAttachType *string `json:"bpfAttachType,omitempty" oneof:"TC TCX Netkit"`
	// +kubebuilder:validation:Pattern=`^(?i)(Enabled|Disabled)?$`
	BPFProfiling string `json:"bpfProfiling,omitempty" oneof:"Enabled Disabled"`
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=3000
	BPFMaglevMaxEndpointsPerService *int `json:"bpfMaglevMaxEndpointsPerService,omitempty" min:"1" max:"3000"`
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=3000
	BPFMaglevMaxServices *int   `json:"bpfMaglevMaxServices,omitempty" min:"1" max:"3000"`
	CgroupV2Path         string `json:"cgroupV2Path,omitempty"`
}

// BPFConntrackTimeouts holds timeouts of connection tracking in eBPF: durations, or Auto for the kernel's own.
type BPFConntrackTimeouts struct {
	CreationGracePeriod *BPFConntrackTimeout `json:"creationGracePeriod,omitempty"`
	TCPSynSent          *BPFConntrackTimeout `json:"tcpSynSent,omitempty"`
	TCPEstablished      *BPFConntrackTimeout `json:"tcpEstablished,omitempty"`
	TCPFinsSeen         *BPFConntrackTimeout `json:"tcpFinsSeen,omitempty"`
	TCPResetSeen        *BPFConntrackTimeout `json:"tcpResetSeen,omitempty"`
	UDPTimeout          *BPFConntrackTimeout `json:"udpTimeout,omitempty"`
	GenericTimeout      *BPFConntrackTimeout `json:"genericTimeout,omitempty"`
	ICMPTimeout         *BPFConntrackTimeout `json:"icmpTimeout,omitempty"`
}

// BPFConntrackTimeout is a duration or Auto.
//
// +kubebuilder:validation:Pattern=`^(([0-9]*(\.[0-9]*)?(ms|s|h|m|us)+)+|Auto)$`
type BPFConntrackTimeout string
