package api

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// KubeControllersConfiguration configures kube-controllers. There is one, named "default".
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName={kcc,kccs},categories=calico
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="LogSeverity",type=string,JSONPath=`.spec.logSeverityScreen`
// +kubebuilder:printcolumn:name="HostEndpoints",type=string,JSONPath=`.status.runningConfig.controllers.node.hostEndpoint.autoCreate`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="there is only one KubeControllersConfiguration, named default",fieldPath=".metadata"
type KubeControllersConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	kept              `json:"-"`

	Spec   KubeControllersConfigurationSpec   `json:"spec"`
	Status KubeControllersConfigurationStatus `json:"status,omitzero"`
}

// KubeControllersConfigurationSpec is the configuration.
type KubeControllersConfigurationSpec struct {
	// LogSeverityScreen is how much is logged.
	// +kubebuilder:validation:Enum=None;Debug;Info;Warning;Error;Fatal;Panic
	LogSeverityScreen string `json:"logSeverityScreen,omitempty"`
	// HealthChecks says whether the process reports its health.
	// +kubebuilder:default=Enabled
	HealthChecks Switch `json:"healthChecks,omitempty"`
	// EtcdV3CompactionPeriod is the time between compactions of etcd; 0 is never. Unset means 10m.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	EtcdV3CompactionPeriod *metav1.Duration `json:"etcdV3CompactionPeriod,omitempty"`
	// PrometheusMetricsPort serves metrics; 0 is off. Unset means 9094.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	PrometheusMetricsPort *int `json:"prometheusMetricsPort,omitempty"`
	// Controllers to run: those that have an entry.
	Controllers ControllersConfig `json:"controllers"`
	// DebugProfilePort serves profiles on the loopback address; unset is off.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	DebugProfilePort *int32 `json:"debugProfilePort,omitempty"`
}

// Switch is Enabled or Disabled.
//
// +kubebuilder:validation:Enum=Enabled;Disabled
type Switch string

// The positions of a Switch.
const (
	Enabled  Switch = "Enabled"
	Disabled Switch = "Disabled"
)

// ControllersConfig has an entry for each controller that runs.
type ControllersConfig struct {
	Node             *NodeControllerConfig         `json:"node,omitempty"`
	Policy           *ReconcilerConfig             `json:"policy,omitempty"`
	WorkloadEndpoint *ReconcilerConfig             `json:"workloadEndpoint,omitempty"`
	ServiceAccount   *ReconcilerConfig             `json:"serviceAccount,omitempty"`
	Namespace        *ReconcilerConfig             `json:"namespace,omitempty"`
	LoadBalancer     *LoadBalancerControllerConfig `json:"loadBalancer,omitempty"`
	Migration        *MigrationControllerConfig    `json:"migration,omitempty"`
}

// ReconcilerConfig configures a controller that copies objects.
type ReconcilerConfig struct {
	// ReconcilerPeriod is the time between full comparisons. Unset means 5m.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	ReconcilerPeriod *metav1.Duration `json:"reconcilerPeriod,omitempty"`
}

// NodeControllerConfig configures the controller that follows Kubernetes nodes and collects lost addresses.
type NodeControllerConfig struct {
	// ReconcilerPeriod is the time between full comparisons. Unset means 5m.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	ReconcilerPeriod *metav1.Duration `json:"reconcilerPeriod,omitempty"`
	// SyncLabels copies labels of Kubernetes nodes, with etcd. Unset means Enabled.
	SyncLabels Switch `json:"syncLabels,omitempty"`
	// HostEndpoint makes host endpoints for every node.
	HostEndpoint *AutoHostEndpointConfig `json:"hostEndpoint,omitempty"`
	// LeakGracePeriod is how long an address may look lost before it is collected; 0 is for ever. Unset means 15m.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))*$`
	LeakGracePeriod *metav1.Duration `json:"leakGracePeriod,omitempty"`
}

// AutoHostEndpointConfig says which host endpoints every node gets.
type AutoHostEndpointConfig struct {
	// AutoCreate turns it on. Unset means Disabled.
	AutoCreate Switch `json:"autoCreate,omitempty"`
	// CreateDefaultHostEndpoint makes the one for all interfaces. Unset means Enabled.
	CreateDefaultHostEndpoint Switch `json:"createDefaultHostEndpoint,omitempty"`
	// Templates for further ones.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Templates []HostEndpointTemplate `json:"templates,omitempty"`
}

// HostEndpointTemplate makes a host endpoint on each node it selects.
type HostEndpointTemplate struct {
	// GenerateName becomes part of the endpoint's name.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)?$`
	GenerateName string `json:"generateName,omitempty"`
	// InterfaceCIDRs limit the expected addresses to those inside.
	// +kubebuilder:validation:items:MaxLength=49
	// +kubebuilder:validation:items:Pattern=`^[0-9a-fA-F:.]+(/[0-9]{1,3})?$`
	// +listType=set
	InterfaceCIDRs []string `json:"interfaceCIDRs,omitempty"`
	// InterfacePattern is a regular expression of interface names; each match gets an endpoint.
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="''.matches(self) in [true, false]",message="must be a regular expression"
	InterfacePattern string `json:"interfacePattern,omitempty"`
	// Labels of the endpoints.
	Labels map[string]string `json:"labels,omitempty"`
	// Annotations of the endpoints.
	Annotations map[string]string `json:"annotations,omitempty"`
	// NodeSelector selects the nodes.
	// +kubebuilder:validation:MaxLength=1024
	NodeSelector string `json:"nodeSelector,omitempty"`
}

// LoadBalancerControllerConfig configures addresses for load-balancer services.
type LoadBalancerControllerConfig struct {
	// AssignIPs says which services get one.
	// +kubebuilder:default=AllServices
	AssignIPs AssignIPs `json:"assignIPs,omitempty"`
}

// AssignIPs says which load-balancer services get an address.
//
// +kubebuilder:validation:Enum=AllServices;RequestedServicesOnly
type AssignIPs string

// The values: all, or those that ask by class, annotation or loadBalancerIP.
const (
	AssignAllServices       AssignIPs = "AllServices"
	AssignRequestedServices AssignIPs = "RequestedServicesOnly"
)

// MigrationControllerConfig configures the renaming of policies that older versions wrote.
type MigrationControllerConfig struct {
	// +kubebuilder:default=Enabled
	PolicyNameMigrator Switch `json:"policyNameMigrator,omitempty"`
}

// KubeControllersConfigurationStatus is what runs.
type KubeControllersConfigurationStatus struct {
	// RunningConfig is the configuration in effect.
	RunningConfig *KubeControllersConfigurationSpec `json:"runningConfig,omitempty"`
	// EnvironmentVars are the environment variables that had a part in it.
	EnvironmentVars map[string]string `json:"environmentVars,omitempty"`
}

// NewKubeControllersConfiguration is the configuration that holds where there is none: every controller runs.
func NewKubeControllersConfiguration() *KubeControllersConfiguration {
	k := &KubeControllersConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: GroupVersion, Kind: "KubeControllersConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: DefaultName},
		Spec: KubeControllersConfigurationSpec{Controllers: ControllersConfig{
			Node:             &NodeControllerConfig{HostEndpoint: &AutoHostEndpointConfig{}},
			Policy:           &ReconcilerConfig{},
			WorkloadEndpoint: &ReconcilerConfig{},
			ServiceAccount:   &ReconcilerConfig{},
			Namespace:        &ReconcilerConfig{},
			LoadBalancer:     &LoadBalancerControllerConfig{},
			Migration:        &MigrationControllerConfig{},
		}},
	}
	k.Default()
	return k
}

// Default fills what is not set. It adds no controller: one without an entry does not run.
func (k *KubeControllersConfiguration) Default() {
	s := &k.Spec
	setDefault(&s.LogSeverityScreen, "Info")
	setDefault(&s.HealthChecks, Enabled)
	setDuration(&s.EtcdV3CompactionPeriod, 10*time.Minute)
	if s.PrometheusMetricsPort == nil {
		s.PrometheusMetricsPort = new(9094)
	}
	if n := s.Controllers.Node; n != nil {
		setDuration(&n.ReconcilerPeriod, 5*time.Minute)
		setDuration(&n.LeakGracePeriod, 15*time.Minute)
		setDefault(&n.SyncLabels, Enabled)
		if n.HostEndpoint != nil {
			setDefault(&n.HostEndpoint.AutoCreate, Disabled)
			setDefault(&n.HostEndpoint.CreateDefaultHostEndpoint, Enabled)
		}
	}
	for _, r := range []*ReconcilerConfig{s.Controllers.Policy, s.Controllers.WorkloadEndpoint, s.Controllers.ServiceAccount, s.Controllers.Namespace} {
		if r != nil {
			setDuration(&r.ReconcilerPeriod, 5*time.Minute)
		}
	}
	if s.Controllers.LoadBalancer != nil {
		setDefault(&s.Controllers.LoadBalancer.AssignIPs, AssignAllServices)
	}
	if s.Controllers.Migration != nil {
		setDefault(&s.Controllers.Migration.PolicyNameMigrator, Enabled)
	}
}

func setDuration(field **metav1.Duration, d time.Duration) {
	if *field == nil {
		*field = &metav1.Duration{Duration: d}
	}
}

// Validate checks the configuration.
func (k *KubeControllersConfiguration) Validate() error {
	var c checker
	c.object(k, defaultName)
	s, spec := &k.Spec, path("spec")
	optionalOneOf(&c, spec.at("logSeverityScreen"), s.LogSeverityScreen, "None", "Debug", "Info", "Warning", "Error", "Fatal", "Panic")
	optionalOneOf(&c, spec.at("healthChecks"), s.HealthChecks, Enabled, Disabled)
	c.duration(spec.at("etcdV3CompactionPeriod"), s.EtcdV3CompactionPeriod)
	if s.PrometheusMetricsPort != nil {
		between(&c, spec.at("prometheusMetricsPort"), *s.PrometheusMetricsPort, 0, 65535)
	}
	if s.DebugProfilePort != nil {
		between(&c, spec.at("debugProfilePort"), *s.DebugProfilePort, 0, 65535)
	}
	s.Controllers.check(&c, spec.at("controllers"))
	return c.err()
}

func (s *ControllersConfig) check(c *checker, at path) {
	if n := s.Node; n != nil {
		n.check(c, at.at("node"))
	}
	for _, r := range []struct {
		name   string
		config *ReconcilerConfig
	}{{"policy", s.Policy}, {"workloadEndpoint", s.WorkloadEndpoint}, {"serviceAccount", s.ServiceAccount}, {"namespace", s.Namespace}} {
		if r.config != nil {
			c.duration(at.at(r.name).at("reconcilerPeriod"), r.config.ReconcilerPeriod)
		}
	}
	if l := s.LoadBalancer; l != nil {
		optionalOneOf(c, at.at("loadBalancer").at("assignIPs"), l.AssignIPs, AssignAllServices, AssignRequestedServices)
	}
	if m := s.Migration; m != nil {
		optionalOneOf(c, at.at("migration").at("policyNameMigrator"), m.PolicyNameMigrator, Enabled, Disabled)
	}
}

func (n *NodeControllerConfig) check(c *checker, at path) {
	c.duration(at.at("reconcilerPeriod"), n.ReconcilerPeriod)
	c.duration(at.at("leakGracePeriod"), n.LeakGracePeriod)
	optionalOneOf(c, at.at("syncLabels"), n.SyncLabels, Enabled, Disabled)
	h := n.HostEndpoint
	if h == nil {
		return
	}
	at = at.at("hostEndpoint")
	optionalOneOf(c, at.at("autoCreate"), h.AutoCreate, Enabled, Disabled)
	optionalOneOf(c, at.at("createDefaultHostEndpoint"), h.CreateDefaultHostEndpoint, Enabled, Disabled)
	for i, t := range h.Templates {
		here := at.at("templates").index(i)
		c.optionalName(here.at("generateName"), t.GenerateName)
		c.nets(here.at("interfaceCIDRs"), t.InterfaceCIDRs, anyFamily, c.cidr)
		c.regexp(here.at("interfacePattern"), t.InterfacePattern)
		c.labels(here.at("labels"), t.Labels)
		c.annotations(here.at("annotations"), t.Annotations)
		c.selector(here.at("nodeSelector"), t.NodeSelector, false)
	}
}
