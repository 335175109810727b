package api

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// FelixConfigurationSpec holds felix's parameters. A field that is not set says nothing: the next layer, and in the end
// the documented default, counts (see EffectiveFelix). Each field carries what is known of it in tags: default is that
// default; oneof (in any case), min, max, pattern, maxlen, maxitems and form are what Validate and the schema demand.
//
// +kubebuilder:validation:XValidation:rule="!has(self.routeTableRange) || !has(self.routeTableRanges)",message="routeTableRange is the old form of routeTableRanges; give one of them",fieldPath=".routeTableRange"
// +kubebuilder:validation:XValidation:rule="!has(self.ipv4NormalRoutePriority) || !has(self.ipv4ElevatedRoutePriority) || self.ipv4ElevatedRoutePriority < self.ipv4NormalRoutePriority",message="must be below ipv4NormalRoutePriority",fieldPath=".ipv4ElevatedRoutePriority"
// +kubebuilder:validation:XValidation:rule="!has(self.ipv6NormalRoutePriority) || !has(self.ipv6ElevatedRoutePriority) || self.ipv6ElevatedRoutePriority < self.ipv6NormalRoutePriority",message="must be below ipv6NormalRoutePriority",fieldPath=".ipv6ElevatedRoutePriority"
// +kubebuilder:validation:XValidation:rule=`self.?natOutgoingAddress.orValue("") == "" || (isIP(self.natOutgoingAddress) && ip(self.natOutgoingAddress).family() == 4)`,message="must be an IPv4 address",fieldPath=".natOutgoingAddress"
// +kubebuilder:validation:XValidation:rule=`self.?deviceRouteSourceAddress.orValue("") == "" || (isIP(self.deviceRouteSourceAddress) && ip(self.deviceRouteSourceAddress).family() == 4)`,message="must be an IPv4 address",fieldPath=".deviceRouteSourceAddress"
// +kubebuilder:validation:XValidation:rule=`self.?deviceRouteSourceAddressIPv6.orValue("") == "" || (isIP(self.deviceRouteSourceAddressIPv6) && ip(self.deviceRouteSourceAddressIPv6).family() == 6)`,message="must be an IPv6 address",fieldPath=".deviceRouteSourceAddressIPv6"
// +kubebuilder:validation:XValidation:rule="!has(self.natPortRange) || type(self.natPortRange) == int || self.natPortRange.matches('^[0-9:]+$')",message="is a name where numbers are needed: write a range such as 30000:32767",fieldPath=".natPortRange"
// +kubebuilder:validation:XValidation:rule="!has(self.kubeNodePortRanges) || self.kubeNodePortRanges.all(p, type(p) == int || p.matches('^[0-9:]+$'))",message="is a name where numbers are needed: write a range such as 30000:32767",fieldPath=".kubeNodePortRanges"
// +kubebuilder:validation:XValidation:rule="!has(self.routeTableRanges) || self.routeTableRanges.map(r, r.max - r.min + 1).sum() <= 65535",message="at most 65535 route tables",fieldPath=".routeTableRanges"
type FelixConfigurationSpec struct {
	// Selection.

	// NodeSelector makes the object apply to the nodes it selects. It is forbidden in "default" and "node.<name>".
	// +kubebuilder:validation:MaxLength=1024
	NodeSelector *string `json:"nodeSelector,omitempty"`

	// Process.

	// LogPrefix begins the kernel log lines of Log rules; %t, %k, %n and %p stand for tier, kind, name and
	// namespace/name.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9%: /_-]*$`
	LogPrefix string `json:"logPrefix,omitempty" pattern:"^[a-zA-Z0-9%: /_-]*$" default:"calico-packet"`
	// LogActionRateLimit limits those lines, "10/minute". Unset is no limit.
	// +kubebuilder:validation:Pattern=`^[1-9][0-9]{0,3}/(second|minute|hour|day)$`
	LogActionRateLimit *string `json:"logActionRateLimit,omitempty" pattern:"^[1-9][0-9]{0,3}/(second|minute|hour|day)$"`
	// LogActionRateLimitBurst is how many lines may come at once.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=9999
	LogActionRateLimitBurst *int `json:"logActionRateLimitBurst,omitempty" min:"0" max:"9999" default:"5"`
	// LogFilePath is the log file.
	LogFilePath string `json:"logFilePath,omitempty" default:"/var/log/calico/felix.log"`
	// LogSeverityFile is how much goes to the file.
	// +kubebuilder:validation:Pattern=`^(?i)(Trace|Debug|Info|Warning|Error|Fatal)?$`
	LogSeverityFile string `json:"logSeverityFile,omitempty" oneof:"Trace Debug Info Warning Error Fatal" default:"Info"`
	// LogSeverityScreen is how much goes to standard error.
	// +kubebuilder:validation:Pattern=`^(?i)(Trace|Debug|Info|Warning|Error|Fatal)?$`
	LogSeverityScreen string `json:"logSeverityScreen,omitempty" oneof:"Trace Debug Info Warning Error Fatal" default:"Info"`
	// LogSeveritySys is how much goes to syslog.
	// +kubebuilder:validation:Pattern=`^(?i)(Trace|Debug|Info|Warning|Error|Fatal)?$`
	LogSeveritySys string `json:"logSeveritySys,omitempty" oneof:"Trace Debug Info Warning Error Fatal" default:"Info"`
	// LogDebugFilenameRegex limits debug lines to those of source files it matches.
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="''.matches(self) in [true, false]",message="must be a regular expression"
	LogDebugFilenameRegex string `json:"logDebugFilenameRegex,omitempty" form:"regexp"`
	// HealthEnabled serves /liveness and /readiness.
	HealthEnabled *bool `json:"healthEnabled,omitempty" default:"false"`
	// HealthHost is where.
	HealthHost *string `json:"healthHost,omitempty" default:"localhost"`
	// HealthPort is where.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	HealthPort *int `json:"healthPort,omitempty" min:"0" max:"65535" default:"9099"`
	// HealthTimeoutOverrides change how long a component may be silent.
	// +listType=atomic
	HealthTimeoutOverrides []HealthTimeoutOverride `json:"healthTimeoutOverrides,omitempty"`
	// PrometheusMetricsEnabled serves metrics.
	PrometheusMetricsEnabled *bool `json:"prometheusMetricsEnabled,omitempty" default:"false"`
	// PrometheusMetricsHost is the address to serve them on; empty is all.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9:._+-]{0,64}$`
	PrometheusMetricsHost string `json:"prometheusMetricsHost,omitempty" pattern:"^[a-zA-Z0-9:._+-]{0,64}$"`
	// PrometheusMetricsPort is the port to serve them on.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	PrometheusMetricsPort *int `json:"prometheusMetricsPort,omitempty" min:"0" max:"65535" default:"9091"`
	// PrometheusGoMetricsEnabled adds those of the Go runtime.
	PrometheusGoMetricsEnabled *bool `json:"prometheusGoMetricsEnabled,omitempty" default:"true"`
	// PrometheusProcessMetricsEnabled adds those of the process.
	PrometheusProcessMetricsEnabled *bool `json:"prometheusProcessMetricsEnabled,omitempty" default:"true"`
	// PrometheusWireGuardMetricsEnabled adds those of WireGuard.
	PrometheusWireGuardMetricsEnabled *bool `json:"prometheusWireGuardMetricsEnabled,omitempty" default:"true"`
	// PrometheusMetricsCAFile verifies the clients' certificates.
	PrometheusMetricsCAFile *string `json:"prometheusMetricsCAFile,omitempty"`
	// PrometheusMetricsCertFile has metrics served over TLS.
	PrometheusMetricsCertFile *string `json:"prometheusMetricsCertFile,omitempty"`
	// PrometheusMetricsKeyFile is the key of that certificate.
	PrometheusMetricsKeyFile *string `json:"prometheusMetricsKeyFile,omitempty"`
	// PrometheusMetricsClientAuth says what clients must show.
	// +kubebuilder:validation:Pattern=`^(?i)(RequireAndVerifyClientCert|RequireAnyClientCert|VerifyClientCertIfGiven|NoClientCert)?$`
	PrometheusMetricsClientAuth *string `json:"prometheusMetricsClientAuth,omitempty" oneof:"RequireAndVerifyClientCert RequireAnyClientCert VerifyClientCertIfGiven NoClientCert" default:"RequireAndVerifyClientCert"`
	// UsageReportingEnabled is accepted for compatibility: nothing is ever reported to anyone.
	UsageReportingEnabled *bool `json:"usageReportingEnabled,omitempty" default:"true"`
	// UsageReportingInitialDelay is accepted for compatibility.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	UsageReportingInitialDelay *metav1.Duration `json:"usageReportingInitialDelay,omitempty" default:"300s"`
	// UsageReportingInterval is accepted for compatibility.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	UsageReportingInterval *metav1.Duration `json:"usageReportingInterval,omitempty" default:"86400s"`
	// FeatureDetectOverride overrules what was found out about the kernel: "ChecksumOffloadBroken=true".
	// +kubebuilder:validation:Pattern=`^([a-zA-Z0-9_-]+=(true|false)?(,|$))*$`
	FeatureDetectOverride string `json:"featureDetectOverride,omitempty" pattern:"^([a-zA-Z0-9_-]+=(true|false)?(,|$))*$"`
	// FeatureGates switches experiments.
	// +kubebuilder:validation:Pattern=`^([a-zA-Z0-9_-]+=[^=,]+(,|$))*$`
	FeatureGates string `json:"featureGates,omitempty" pattern:"^([a-zA-Z0-9_-]+=[^=,]+(,|$))*$"`
	// GoGCThreshold is how much garbage, in percent of what is in use, the Go runtime lets gather; -1 is without limit.
	// +kubebuilder:validation:Minimum=-1
	GoGCThreshold *int `json:"goGCThreshold,omitempty" min:"-1" default:"40"`
	// GoMemoryLimitMB is the Go runtime's soft limit of memory; -1 is none.
	// +kubebuilder:validation:Minimum=-1
	GoMemoryLimitMB *int `json:"goMemoryLimitMB,omitempty" min:"-1" default:"-1"`
	// GoMaxProcs is how many processors are used at once; -1 is all.
	// +kubebuilder:validation:Minimum=-1
	GoMaxProcs *int `json:"goMaxProcs,omitempty" min:"-1" default:"-1"`
	// DebugMemoryProfilePath is where to write memory profiles.
	DebugMemoryProfilePath string `json:"debugMemoryProfilePath,omitempty"`
	// DebugDisableLogDropping waits for a slow log rather than drop lines.
	DebugDisableLogDropping *bool `json:"debugDisableLogDropping,omitempty" default:"false"`
	// DebugSimulateCalcGraphHangAfter is for tests of the watchdog.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	DebugSimulateCalcGraphHangAfter *metav1.Duration `json:"debugSimulateCalcGraphHangAfter,omitempty"`
	// DebugSimulateDataplaneHangAfter is for tests of the watchdog.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	DebugSimulateDataplaneHangAfter *metav1.Duration `json:"debugSimulateDataplaneHangAfter,omitempty"`
	// DebugSimulateDataplaneApplyDelay is for tests.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	DebugSimulateDataplaneApplyDelay *metav1.Duration `json:"debugSimulateDataplaneApplyDelay,omitempty"`
	// DebugHost is where profiles are served.
	DebugHost *string `json:"debugHost,omitempty" default:"localhost"`
	// DebugPort serves profiles; unset is off.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	DebugPort *int `json:"debugPort,omitempty" min:"0" max:"65535"`
	// UseInternalDataplaneDriver is accepted for compatibility.
	UseInternalDataplaneDriver *bool `json:"useInternalDataplaneDriver,omitempty" default:"true"`
	// DataplaneDriver is accepted for compatibility.
	DataplaneDriver string `json:"dataplaneDriver,omitempty"`
	// DataplaneWatchdogTimeout is how long the main loop may be silent before the process counts as dead.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	DataplaneWatchdogTimeout *metav1.Duration `json:"dataplaneWatchdogTimeout,omitempty" default:"90s"`
	// NetlinkTimeout bounds one request to the kernel.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	NetlinkTimeout *metav1.Duration `json:"netlinkTimeout,omitempty" default:"10s"`
	// RequireMTUFile has the CNI plugin fail without /var/lib/calico/mtu.
	RequireMTUFile *bool `json:"requireMTUFile,omitempty" default:"false"`
	// WindowsManageFirewallRules is accepted for compatibility.
	// +kubebuilder:validation:Pattern=`^(?i)(Enabled|Disabled)?$`
	WindowsManageFirewallRules *string `json:"windowsManageFirewallRules,omitempty" oneof:"Enabled Disabled" default:"Disabled"`

	// Interfaces and endpoints.

	// InterfacePrefix begins the names of workload interfaces on the host; several are separated by commas.
	InterfacePrefix string `json:"interfacePrefix,omitempty" default:"cali"`
	// InterfaceExclude lists interfaces to leave alone, names or /regular expressions/.
	InterfaceExclude string `json:"interfaceExclude,omitempty" default:"kube-ipvs0"`
	// InterfaceRefreshInterval is the time between full looks at all interfaces; 0 is never.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	InterfaceRefreshInterval *metav1.Duration `json:"interfaceRefreshInterval,omitempty" default:"90s"`
	// MTUIfacePattern says which interfaces carry traffic to other nodes; the smallest MTU of them counts.
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="''.matches(self) in [true, false]",message="must be a regular expression"
	MTUIfacePattern string `json:"mtuIfacePattern,omitempty" form:"regexp" default:"^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)"`
	// DefaultEndpointToHostAction is what becomes of traffic from a workload to its own host after policy.
	// +kubebuilder:validation:Pattern=`^(?i)(Drop|Accept|Return)?$`
	DefaultEndpointToHostAction string `json:"defaultEndpointToHostAction,omitempty" oneof:"Drop Accept Return" default:"Drop"`
	// WorkloadSourceSpoofing lets pods ask for source addresses that are not theirs.
	// +kubebuilder:validation:Pattern=`^(?i)(Disabled|Any)?$`
	WorkloadSourceSpoofing string `json:"workloadSourceSpoofing,omitempty" oneof:"Disabled Any" default:"Disabled"`
	// FloatingIPs translates outside addresses to pods.
	// +kubebuilder:validation:Pattern=`^(?i)(Enabled|Disabled)?$`
	FloatingIPs *string `json:"floatingIPs,omitempty" oneof:"Enabled Disabled" default:"Disabled"`
	// EndpointReportingEnabled writes the state of endpoints to the datastore.
	EndpointReportingEnabled *bool `json:"endpointReportingEnabled,omitempty" default:"false"`
	// EndpointReportingDelay gathers such writes.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	EndpointReportingDelay *metav1.Duration `json:"endpointReportingDelay,omitempty" default:"1s"`
	// EndpointStatusPathPrefix holds endpoint-status/, with a file for each programmed endpoint.
	EndpointStatusPathPrefix string `json:"endpointStatusPathPrefix,omitempty" default:"/var/run/calico"`
	// PolicySyncPathPrefix holds the sockets that tell pods their own policy; empty is off.
	PolicySyncPathPrefix string `json:"policySyncPathPrefix,omitempty"`
	// ReportingInterval is the time between reports of the node's own state.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	ReportingInterval *metav1.Duration `json:"reportingInterval,omitempty" default:"30s"`
	// ReportingTTL is how long such a report holds.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	ReportingTTL *metav1.Duration `json:"reportingTTL,omitempty" default:"90s"`
	// OpenstackRegion is accepted for compatibility.
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9]{0,44}[a-z0-9])?)?$`
	OpenstackRegion string `json:"openstackRegion,omitempty" pattern:"^([a-z0-9]([-a-z0-9]{0,44}[a-z0-9])?)?$"`
	// MetadataAddr is the address of the OpenStack metadata service; none is without.
	MetadataAddr string `json:"metadataAddr,omitempty" default:"127.0.0.1"`
	// MetadataPort is its port.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	MetadataPort *int `json:"metadataPort,omitempty" min:"0" max:"65535" default:"8775"`
	// LocalSubnetL2Reachability answers ARP and neighbour discovery for pod and load-balancer addresses inside the node's
	// subnet.
	// +kubebuilder:validation:Pattern=`^(?i)(Disabled|PodsAndLoadBalancers)?$`
	LocalSubnetL2Reachability *string `json:"localSubnetL2Reachability,omitempty" oneof:"Disabled PodsAndLoadBalancers" default:"Disabled"`
	// LocalSubnetL2ReachabilityRefreshInterval is the time between unasked announcements of them.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	LocalSubnetL2ReachabilityRefreshInterval *metav1.Duration `json:"localSubnetL2ReachabilityRefreshInterval,omitempty" default:"120s"`
	// IstioAmbientMode marks packets of pods in an Istio ambient mesh.
	// +kubebuilder:validation:Pattern=`^(?i)(Enabled|Disabled)?$`
	IstioAmbientMode *string `json:"istioAmbientMode,omitempty" oneof:"Enabled Disabled" default:"Disabled"`
	// IstioDSCPMark is that mark.
	IstioDSCPMark *DSCP `json:"istioDSCPMark,omitempty" form:"dscp" default:"23"`

	// Rules.

	// IptablesBackend says which iptables to use; Auto is the one that the host uses.
	// +kubebuilder:validation:Pattern=`^(?i)(Legacy|NFT|Auto)?$`
	IptablesBackend *string `json:"iptablesBackend,omitempty" oneof:"Legacy NFT Auto" default:"Auto"`
	// IptablesRefreshInterval is the time between full comparisons of the rules; 0 is never.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	IptablesRefreshInterval *metav1.Duration `json:"iptablesRefreshInterval,omitempty" default:"180s"`
	// IptablesPostWriteCheckInterval is when rules are read again after a write.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	IptablesPostWriteCheckInterval *metav1.Duration `json:"iptablesPostWriteCheckInterval,omitempty" default:"5s"`
	// IptablesLockProbeInterval is the time between attempts at the lock of iptables.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	IptablesLockProbeInterval *metav1.Duration `json:"iptablesLockProbeInterval,omitempty" default:"50ms"`
	// IptablesFilterAllowAction is what becomes of allowed packets in the filter table.
	// +kubebuilder:validation:Pattern=`^(?i)(Accept|Return)?$`
	IptablesFilterAllowAction string `json:"iptablesFilterAllowAction,omitempty" oneof:"Accept Return" default:"Accept"`
	// IptablesMangleAllowAction is what becomes of allowed packets in the mangle table.
	// +kubebuilder:validation:Pattern=`^(?i)(Accept|Return)?$`
	IptablesMangleAllowAction string `json:"iptablesMangleAllowAction,omitempty" oneof:"Accept Return" default:"Accept"`
	// IptablesFilterDenyAction is what becomes of denied packets.
	// +kubebuilder:validation:Pattern=`^(?i)(Drop|Reject)?$`
	IptablesFilterDenyAction string `json:"iptablesFilterDenyAction,omitempty" oneof:"Drop Reject" default:"Drop"`
	// IptablesMarkMask holds the bits of the packet mark that are ours.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	IptablesMarkMask *int64 `json:"iptablesMarkMask,omitempty" min:"0" max:"4294967295" default:"0xffff0000"`
	// IptablesNATOutgoingInterfaceFilter limits masquerading to packets that leave by such interfaces.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9:._+-]{0,15}$`
	IptablesNATOutgoingInterfaceFilter string `json:"iptablesNATOutgoingInterfaceFilter,omitempty" form:"ifaceFilter"`
	// ChainInsertMode puts our jumps before other rules of the kernel's chains, or behind them.
	// +kubebuilder:validation:Pattern=`^(?i)(Insert|Append)?$`
	ChainInsertMode string `json:"chainInsertMode,omitempty" oneof:"Insert Append" default:"Insert"`
	// NFTablesMode chooses nftables over iptables; Auto is what kube-proxy uses.
	// +kubebuilder:validation:Pattern=`^(?i)(Disabled|Enabled|Auto)?$`
	NFTablesMode *string `json:"nftablesMode,omitempty" oneof:"Disabled Enabled Auto" default:"Auto"`
	// NFTablesFlowTableOffload lets established flows pass by the rules.
	// +kubebuilder:validation:Pattern=`^(?i)(All|Disabled)?$`
	NFTablesFlowTableOffload *string `json:"nftablesFlowTableOffload,omitempty" oneof:"All Disabled" default:"Disabled"`
	// NFTablesFlowTableDataIfacePattern says on which host interfaces.
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="''.matches(self) in [true, false]",message="must be a regular expression"
	NFTablesFlowTableDataIfacePattern string `json:"nftablesFlowTableDataIfacePattern,omitempty" form:"regexp"`
	// NftablesRefreshInterval is the time between full comparisons of the rules; 0 is never.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	NftablesRefreshInterval *metav1.Duration `json:"nftablesRefreshInterval,omitempty" default:"180s"`
	// NftablesFilterAllowAction is what becomes of allowed packets in filter chains.
	// +kubebuilder:validation:Pattern=`^(?i)(Accept|Return)?$`
	NftablesFilterAllowAction string `json:"nftablesFilterAllowAction,omitempty" oneof:"Accept Return" default:"Accept"`
	// NftablesMangleAllowAction is what becomes of allowed packets in mangle chains.
	// +kubebuilder:validation:Pattern=`^(?i)(Accept|Return)?$`
	NftablesMangleAllowAction string `json:"nftablesMangleAllowAction,omitempty" oneof:"Accept Return" default:"Accept"`
	// NftablesFilterDenyAction is what becomes of denied packets.
	// +kubebuilder:validation:Pattern=`^(?i)(Drop|Reject)?$`
	NftablesFilterDenyAction string `json:"nftablesFilterDenyAction,omitempty" oneof:"Drop Reject" default:"Drop"`
	// NftablesMarkMask holds the bits of the packet mark that are ours.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=4294967295
	NftablesMarkMask *int64 `json:"nftablesMarkMask,omitempty" min:"0" max:"4294967295" default:"0xffff0000"`
	// IpsetsRefreshInterval is the time between full comparisons of the IP sets; 0 is never.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	IpsetsRefreshInterval *metav1.Duration `json:"ipsetsRefreshInterval,omitempty" default:"90s"`
	// MaxIpsetSize is the greatest number of members of a set.
	// +kubebuilder:validation:Minimum=1
	MaxIpsetSize *int `json:"maxIpsetSize,omitempty" min:"1" default:"1048576"`
	// DisableConntrackInvalidCheck lets packets pass that connection tracking cannot place.
	DisableConntrackInvalidCheck *bool `json:"disableConntrackInvalidCheck,omitempty" default:"false"`
	// FailsafeInboundHostPorts stay open on host endpoints whatever policy says. Unset means DefaultFailsafeInbound, an
	// empty list none.
	// +listType=atomic
	FailsafeInboundHostPorts *[]ProtoPort `json:"failsafeInboundHostPorts,omitempty"`
	// FailsafeOutboundHostPorts can be reached from host endpoints whatever policy says. Unset means
	// DefaultFailsafeOutbound.
	// +listType=atomic
	FailsafeOutboundHostPorts *[]ProtoPort `json:"failsafeOutboundHostPorts,omitempty"`
	// KubeNodePortRanges are the ranges of Kubernetes node ports.
	// +kubebuilder:validation:MaxItems=7
	// +listType=atomic
	KubeNodePortRanges *[]Port `json:"kubeNodePortRanges,omitempty" maxitems:"7" default:"30000:32767"`
	// ServiceLoopPrevention is what becomes of packets to announced service addresses that no service takes.
	// +kubebuilder:validation:Pattern=`^(?i)(Drop|Reject|Disabled)?$`
	ServiceLoopPrevention string `json:"serviceLoopPrevention,omitempty" oneof:"Drop Reject Disabled" default:"Drop"`
	// XDPEnabled drops untracked denied packets early where the driver can.
	XDPEnabled *bool `json:"xdpEnabled,omitempty" default:"true"`
	// GenericXDPEnabled does it where the driver cannot.
	GenericXDPEnabled *bool `json:"genericXDPEnabled,omitempty" default:"false"`
	// XDPRefreshInterval is the time between full comparisons of it; 0 is never.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	XDPRefreshInterval *metav1.Duration `json:"xdpRefreshInterval,omitempty" default:"90s"`
	// SidecarAccelerationEnabled is accepted for compatibility.
	SidecarAccelerationEnabled *bool `json:"sidecarAccelerationEnabled,omitempty" default:"false"`

	// Routes and tunnels.

	// IPv6Support is IPv6 at all.
	IPv6Support *bool `json:"ipv6Support,omitempty" default:"true"`
	// IPForwarding lets felix turn on forwarding in the host's kernel.
	// +kubebuilder:validation:Pattern=`^(?i)(Enabled|Disabled)?$`
	IPForwarding string `json:"ipForwarding,omitempty" oneof:"Enabled Disabled" default:"Enabled"`
	// RouteRefreshInterval is the time between full comparisons of the routes; 0 is never.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	RouteRefreshInterval *metav1.Duration `json:"routeRefreshInterval,omitempty" default:"90s"`
	// RouteSource says what routes to other nodes are made from.
	// +kubebuilder:validation:Pattern=`^(?i)(WorkloadIPs|CalicoIPAM)?$`
	RouteSource string `json:"routeSource,omitempty" oneof:"WorkloadIPs CalicoIPAM" default:"CalicoIPAM"`
	// RouteSyncDisabled leaves all routes to someone else.
	RouteSyncDisabled *bool `json:"routeSyncDisabled,omitempty" default:"false"`
	// RouteTableRanges are the kernel's route tables that felix may take.
	// +listType=atomic
	RouteTableRanges *[]RouteTableIDRange `json:"routeTableRanges,omitempty" default:"1-250"`
	// RouteTableRange is the old form of RouteTableRanges.
	RouteTableRange *RouteTableIDRange `json:"routeTableRange,omitempty"`
	// DeviceRouteProtocol marks routes of local workloads as ours.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=255
	DeviceRouteProtocol *int `json:"deviceRouteProtocol,omitempty" min:"0" max:"255" default:"3"`
	// DeviceRouteSourceAddress is the preferred source address of such routes.
	// +kubebuilder:validation:MaxLength=45
	DeviceRouteSourceAddress string `json:"deviceRouteSourceAddress,omitempty" form:"ip4"`
	// DeviceRouteSourceAddressIPv6 is the preferred source address of such routes.
	// +kubebuilder:validation:MaxLength=45
	DeviceRouteSourceAddressIPv6 string `json:"deviceRouteSourceAddressIPv6,omitempty" form:"ip6"`
	// RemoveExternalRoutes removes routes to workload interfaces that someone else made.
	RemoveExternalRoutes *bool `json:"removeExternalRoutes,omitempty" default:"true"`
	// ProgramClusterRoutes is accepted for compatibility: felix programs every route. It complements the field of that
	// name in BGPConfiguration.
	// +kubebuilder:validation:Pattern=`^(?i)(Disabled|Enabled|EnabledIPIPOnly|EnabledNoEncapOnly)?$`
	ProgramClusterRoutes *string `json:"programClusterRoutes,omitempty" oneof:"Disabled Enabled EnabledIPIPOnly EnabledNoEncapOnly" default:"EnabledIPIPOnly"`
	// IPv4NormalRoutePriority is the metric of routes; it equals that of BGPConfiguration.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	IPv4NormalRoutePriority *int `json:"ipv4NormalRoutePriority,omitempty" min:"1" max:"2147483646" default:"1024"`
	// IPv4ElevatedRoutePriority is the metric while a workload moves; it is below the normal one.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	IPv4ElevatedRoutePriority *int `json:"ipv4ElevatedRoutePriority,omitempty" min:"1" max:"2147483646" default:"512"`
	// IPv6NormalRoutePriority is the metric of routes; it equals that of BGPConfiguration.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	IPv6NormalRoutePriority *int `json:"ipv6NormalRoutePriority,omitempty" min:"1" max:"2147483646" default:"1024"`
	// IPv6ElevatedRoutePriority is the metric while a workload moves; it is below the normal one.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=2147483646
	IPv6ElevatedRoutePriority *int `json:"ipv6ElevatedRoutePriority,omitempty" min:"1" max:"2147483646" default:"512"`
	// LiveMigrationRouteConvergenceTime is how long it stays so after the move.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	LiveMigrationRouteConvergenceTime *metav1.Duration `json:"liveMigrationRouteConvergenceTime,omitempty" default:"30s"`
	// ExternalNodesCIDRList are outside sources of tunnelled packets to accept.
	// +kubebuilder:validation:items:Pattern=`^[0-9.]+(/[0-9]{1,2})?$`
	// +listType=atomic
	ExternalNodesCIDRList *[]string `json:"externalNodesList,omitempty" form:"cidr4"`
	// IPIPEnabled overrules whether the IP-in-IP device is there; unset means if a pool needs it.
	IPIPEnabled *bool `json:"ipipEnabled,omitempty"`
	// IPIPMTU is the MTU of tunl0; 0 is worked out.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	IPIPMTU *int `json:"ipipMTU,omitempty" min:"0" max:"65535" default:"0"`
	// VXLANEnabled overrules whether the VXLAN devices are there; unset means if a pool needs them.
	VXLANEnabled *bool `json:"vxlanEnabled,omitempty"`
	// VXLANMTU is the MTU of vxlan.calico; 0 is worked out.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	VXLANMTU *int `json:"vxlanMTU,omitempty" min:"0" max:"65535" default:"0"`
	// VXLANMTUV6 is the MTU of vxlan-v6.calico; 0 is worked out.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	VXLANMTUV6 *int `json:"vxlanMTUV6,omitempty" min:"0" max:"65535" default:"0"`
	// VXLANPort is the UDP port of VXLAN.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	VXLANPort *int `json:"vxlanPort,omitempty" min:"1" max:"65535" default:"4789"`
	// VXLANVNI is the network identifier of VXLAN.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16777215
	VXLANVNI *int `json:"vxlanVNI,omitempty" min:"1" max:"16777215" default:"4096"`
	// AllowVXLANPacketsFromWorkloads lets workloads send VXLAN of their own.
	AllowVXLANPacketsFromWorkloads *bool `json:"allowVXLANPacketsFromWorkloads,omitempty" default:"false"`
	// AllowIPIPPacketsFromWorkloads lets workloads send IP-in-IP of their own.
	AllowIPIPPacketsFromWorkloads *bool `json:"allowIPIPPacketsFromWorkloads,omitempty" default:"false"`
	// NATPortRange limits the source ports of masqueraded packets.
	NATPortRange *Port `json:"natPortRange,omitempty" form:"portRange"`
	// NATOutgoingAddress is the source address to use instead of the interface's.
	// +kubebuilder:validation:MaxLength=45
	NATOutgoingAddress string `json:"natOutgoingAddress,omitempty" form:"ip4"`
	// NATOutgoingExclusions says which destinations are not masqueraded to.
	// +kubebuilder:validation:Pattern=`^(?i)(IPPoolsOnly|IPPoolsAndHostIPs)?$`
	NATOutgoingExclusions *string `json:"natOutgoingExclusions,omitempty" oneof:"IPPoolsOnly IPPoolsAndHostIPs" default:"IPPoolsOnly"`
	// AWSSrcDstCheck sets the source-destination check of the EC2 interface.
	// +kubebuilder:validation:Pattern=`^(?i)(DoNothing|Enable|Disable)?$`
	AWSSrcDstCheck *string `json:"awsSrcDstCheck,omitempty" oneof:"DoNothing Enable Disable" default:"DoNothing"`
	// WireguardEnabled encrypts IPv4 traffic between nodes.
	WireguardEnabled *bool `json:"wireguardEnabled,omitempty" default:"false"`
	// WireguardEnabledV6 encrypts IPv6 traffic between nodes.
	WireguardEnabledV6 *bool `json:"wireguardEnabledV6,omitempty" default:"false"`
	// WireguardThreadingEnabled has the kernel poll the device in threads.
	WireguardThreadingEnabled *bool `json:"wireguardThreadingEnabled,omitempty" default:"false"`
	// WireguardListeningPort is the UDP port of the IPv4 device.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	WireguardListeningPort *int `json:"wireguardListeningPort,omitempty" min:"1" max:"65535" default:"51820"`
	// WireguardListeningPortV6 is the UDP port of the IPv6 device.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	WireguardListeningPortV6 *int `json:"wireguardListeningPortV6,omitempty" min:"1" max:"65535" default:"51821"`
	// WireguardRoutingRulePriority is the priority of the routing rule.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=32765
	WireguardRoutingRulePriority *int `json:"wireguardRoutingRulePriority,omitempty" min:"1" max:"32765" default:"99"`
	// WireguardInterfaceName is the IPv4 device.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9_.-]{0,15}$`
	WireguardInterfaceName string `json:"wireguardInterfaceName,omitempty" form:"iface" default:"wireguard.cali"`
	// WireguardInterfaceNameV6 is the IPv6 device.
	// +kubebuilder:validation:Pattern=`^[a-zA-Z0-9_.-]{0,15}$`
	WireguardInterfaceNameV6 string `json:"wireguardInterfaceNameV6,omitempty" form:"iface" default:"wg-v6.cali"`
	// WireguardMTU is the IPv4 device's MTU; 0 is worked out.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	WireguardMTU *int `json:"wireguardMTU,omitempty" min:"0" max:"65535" default:"0"`
	// WireguardMTUV6 is the IPv6 device's MTU; 0 is worked out.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	WireguardMTUV6 *int `json:"wireguardMTUV6,omitempty" min:"0" max:"65535" default:"0"`
	// WireguardHostEncryptionEnabled encrypts traffic of the hosts themselves too.
	WireguardHostEncryptionEnabled *bool `json:"wireguardHostEncryptionEnabled,omitempty" default:"false"`
	// WireguardPersistentKeepAlive is the time between keepalives; 0 is off.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	WireguardPersistentKeepAlive *metav1.Duration `json:"wireguardKeepAlive,omitempty" default:"0s"`

	// Flow logs.

	// FlowLogsFlushInterval is the time over which flows are gathered.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ms|s|m|h))*$`
	FlowLogsFlushInterval *metav1.Duration `json:"flowLogsFlushInterval,omitempty" default:"300s"`
	// FlowLogsCollectorDebugTrace logs what the collector does.
	FlowLogsCollectorDebugTrace *bool `json:"flowLogsCollectorDebugTrace,omitempty" default:"false"`
	// FlowLogsGoldmaneServer takes the flows.
	FlowLogsGoldmaneServer *string `json:"flowLogsGoldmaneServer,omitempty"`
	// FlowLogsLocalReporter serves the flows on a socket of the node.
	// +kubebuilder:validation:Pattern=`^(?i)(Enabled|Disabled)?$`
	FlowLogsLocalReporter *string `json:"flowLogsLocalReporter,omitempty" oneof:"Enabled Disabled" default:"Disabled"`
	// FlowLogsPolicyEvaluationMode judges known flows again when policy changes.
	// +kubebuilder:validation:Pattern=`^(?i)(None|Continuous)?$`
	FlowLogsPolicyEvaluationMode *string `json:"flowLogsPolicyEvaluationMode,omitempty" oneof:"None Continuous" default:"Continuous"`

	FelixBPFSpec `json:",inline"`
}
