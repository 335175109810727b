// Package conf is the CNI network configuration of the calico plugin and its IPAM part: what the keys are, what they
// default to, and which values are refused (spec §6.1, §6.4). It is pure.
package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/muslin-net/muslin/api/annotation"
)

// Network is one plugin configuration as it arrives on standard input.
type Network struct {
	CNIVersion  string          `json:"cniVersion"`
	Name        string          `json:"name"`
	Type        string          `json:"type"`
	IPAM        IPAM            `json:"ipam"`
	PrevResult  json.RawMessage `json:"prevResult,omitempty"`
	Args        Args            `json:"args"`
	FelixSocket string          `json:"felix_socket"` // where felix listens for plugins; empty means its default

	MTU               int               `json:"mtu"`
	NumQueues         int               `json:"num_queues"`
	DeviceType        string            `json:"device_type"` // "veth"; "netkit" falls back to it
	Policy            Policy            `json:"policy"`
	ContainerSettings ContainerSettings `json:"container_settings"`
	FeatureControl    FeatureControl    `json:"feature_control"`
	// PolicySetupTimeout is how many seconds ADD waits for the pod's policy; 0 leaves it to felix.
	PolicySetupTimeout int  `json:"policy_setup_timeout_seconds"`
	RequirePolicy      bool `json:"require_policy"` // fail with "try again" instead of starting a pod closed

	// IncludeDefaultRoutes adds default routes to those that another IPAM plugin gives; without routes of its own a family
	// has them anyway.
	IncludeDefaultRoutes bool `json:"include_default_routes"`

	// RuntimeConfig is what the runtime says of the pod, for capabilities that the configuration declares.
	RuntimeConfig RuntimeConfig `json:"runtimeConfig"`

	// Attachments that the runtime still knows, in a GC call (CNI 1.1).
	ValidAttachments []Attachment `json:"cni.dev/valid-attachments"`
}

// Policy says where labels and profiles come from.
type Policy struct {
	Type string `json:"type"` // "k8s" or empty
}

// ContainerSettings are sysctls of the pod.
type ContainerSettings struct {
	AllowIPForwarding bool `json:"allow_ip_forwarding"`
}

// FeatureControl turns on what is off by default.
type FeatureControl struct {
	IPAddrsNoIPAM bool `json:"ip_addrs_no_ipam"`
	FloatingIPs   bool `json:"floating_ips"`
}

// Args are arguments beside CNI_ARGS: the "args.cni" convention of the CNI project.
type Args struct {
	CNI struct {
		Labels []Label  `json:"labels"`
		IPs    []string `json:"ips"`
		MAC    string   `json:"mac"`
	} `json:"cni"`
}

// RuntimeConfig holds the values of capabilities, by the conventions of the CNI project; portMappings are portmap's.
type RuntimeConfig struct {
	IPs         []string          `json:"ips"`
	MAC         string            `json:"mac"`
	Bandwidth   *Bandwidth        `json:"bandwidth"`
	Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"` // containerd's
}

// Bandwidth limits a pod, in bits per second and bits; 0 is no limit.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// Label is a label of an endpoint that no orchestrator knows.
type Label struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// IPAM is the address part.
type IPAM struct {
	Type       string   `json:"type"`
	Subnet     string   `json:"subnet"`      // of host-local: a CIDR, or usePodCidr
	AssignIPv4 *string  `json:"assign_ipv4"` // "true" or "false"; "true" if absent
	AssignIPv6 *string  `json:"assign_ipv6"` // "true" or "false"; "false" if absent
	IPv4Pools  []string `json:"ipv4_pools"`
	IPv6Pools  []string `json:"ipv6_pools"`
}

// Attachment is an entry of cni.dev/valid-attachments.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// OwnIPAM is the IPAM type whose work felix does itself.
const OwnIPAM = "calico-ipam"

// Read reads no more than DEL and GC need: a pod must be able to go, whatever became of the configuration since it came.
func Read(stdin []byte) (*Network, error) {
	var few struct {
		CNIVersion       string                `json:"cniVersion"`
		Name             string                `json:"name"`
		IPAM             struct{ Type string } `json:"ipam"`
		FelixSocket      string                `json:"felix_socket"`
		ValidAttachments []Attachment          `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(stdin, &few); err != nil {
		return nil, fmt.Errorf("network configuration is not valid JSON: %w", err)
	}
	n := &Network{CNIVersion: few.CNIVersion, Name: few.Name, FelixSocket: few.FelixSocket, ValidAttachments: few.ValidAttachments}
	n.IPAM.Type = few.IPAM.Type
	return n, n.named()
}

// Parse reads and judges a configuration of the calico plugin. The error names the key, the value and the remedy.
func Parse(stdin []byte) (*Network, error) {
	n, err := parse(stdin)
	if err != nil {
		return nil, err
	}
	switch {
	case n.DeviceType != "" && n.DeviceType != "veth" && n.DeviceType != "netkit":
		return nil, fmt.Errorf("network configuration: device_type %q is unknown; use \"veth\" or leave it out", n.DeviceType)
	case n.MTU < 0 || n.MTU > 65535:
		return nil, fmt.Errorf("network configuration: mtu %d is out of range; use 0 (automatic) to 65535", n.MTU)
	case n.PolicySetupTimeout < 0:
		return nil, fmt.Errorf("network configuration: policy_setup_timeout_seconds %d is negative; use 0 for the default", n.PolicySetupTimeout)
	case n.NumQueues < 0:
		return nil, fmt.Errorf("network configuration: num_queues %d is negative; use 1 or more", n.NumQueues)
	case n.Policy.Type != "" && n.Policy.Type != "k8s":
		return nil, fmt.Errorf("network configuration: policy.type %q is unknown; use \"k8s\" or leave it out", n.Policy.Type)
	}
	return n, nil
}

// ParseIPAM reads and judges the address part of a configuration that is another main plugin's.
func ParseIPAM(stdin []byte) (*Network, error) {
	var few struct {
		CNIVersion    string          `json:"cniVersion"`
		Name          string          `json:"name"`
		IPAM          json.RawMessage `json:"ipam"`
		Args          Args            `json:"args"`
		RuntimeConfig RuntimeConfig   `json:"runtimeConfig"`
		FelixSocket   string          `json:"felix_socket"`
	}
	if err := json.Unmarshal(stdin, &few); err != nil {
		return nil, fmt.Errorf("network configuration is not valid JSON: %w", err)
	}
	part, err := json.Marshal(few)
	if err != nil {
		return nil, err
	}
	return parse(part)
}

func parse(stdin []byte) (*Network, error) {
	n := &Network{}
	if err := json.Unmarshal(stdin, n); err != nil {
		return nil, fmt.Errorf("network configuration is not valid JSON: %w", err)
	}
	if err := errors.Join(n.named(), checkKeys("", stdin)); err != nil {
		return nil, err
	}
	for key, value := range map[string]*string{"assign_ipv4": n.IPAM.AssignIPv4, "assign_ipv6": n.IPAM.AssignIPv6} {
		if value != nil && *value != "true" && *value != "false" {
			return nil, fmt.Errorf("network configuration: ipam.%s %q is not a truth value; use \"true\" or \"false\"", key, *value)
		}
	}
	for _, family := range []struct {
		key   string
		pools []string
		is4   bool
	}{{"ipv4_pools", n.IPAM.IPv4Pools, true}, {"ipv6_pools", n.IPAM.IPv6Pools, false}} {
		for _, pool := range family.pools {
			if cidr, err := netip.ParsePrefix(pool); err == nil && cidr.Addr().Is4() != family.is4 {
				return nil, fmt.Errorf("network configuration: ipam.%s %q is of the other address family", family.key, pool)
			}
		}
	}
	return n, nil
}

func (n *Network) named() error {
	if n.Name == "" {
		return errors.New("network configuration: key \"name\" is missing; give the network a name such as k8s-pod-network")
	}
	return nil
}

// Own tells whether felix assigns the addresses.
func (n *Network) Own() bool { return n.IPAM.Type == OwnIPAM || n.IPAM.Type == "" }

// IPv4 tells whether an IPv4 address is wanted.
func (n *Network) IPv4() bool { return n.IPAM.AssignIPv4 == nil || *n.IPAM.AssignIPv4 == "true" }

// IPv6 tells whether an IPv6 address is wanted.
func (n *Network) IPv6() bool { return n.IPAM.AssignIPv6 != nil && *n.IPAM.AssignIPv6 == "true" }

// Labels are the labels that came with the call.
func (n *Network) Labels() map[string]string {
	out := make(map[string]string, len(n.Args.CNI.Labels))
	for _, l := range n.Args.CNI.Labels {
		out[l.Key] = l.Value
	}
	return out
}

// PolicyWait is how long ADD waits for policy; 0 leaves it to felix.
func (n *Network) PolicyWait() time.Duration {
	return time.Duration(n.PolicySetupTimeout) * time.Second
}

// ParseArgs reads CNI_ARGS, "KEY=VALUE" pairs joined by semicolons.
func ParseArgs(s string) (map[string]string, error) {
	out := map[string]string{}
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("CNI_ARGS: %q is not of the form KEY=VALUE", pair)
		}
		out[key] = value
	}
	return out, nil
}

// CheckArgs judges the values of CNI_ARGS that ask for something.
func CheckArgs(args map[string]string) error {
	if text := args["IP"]; text != "" {
		if _, err := netip.ParseAddr(text); err != nil {
			return fmt.Errorf("CNI_ARGS: IP=%s is not an address", text)
		}
	}
	if text := args["MAC"]; text != "" {
		if _, ok := annotation.MAC(text); !ok {
			return fmt.Errorf("CNI_ARGS: MAC=%s is not the Ethernet address of one interface", text)
		}
	}
	return nil
}
