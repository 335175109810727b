package render

import (
	"fmt"

	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/deploy"
)

// Values are what an installation may choose. deploy/chart/values.yaml has the same, with what each means and its default.
type Values struct {
	Image           Image       `json:"image"`
	Backend         api.Backend `json:"backend"`
	ClusterType     string      `json:"clusterType"`
	CNI             CNI         `json:"cni"`
	IPv4Pool        Pool        `json:"ipv4Pool"`
	IPv6Pool        Pool        `json:"ipv6Pool"`
	FurtherPools    []NamedPool `json:"furtherPools"`
	NodeAddress     NodeAddress `json:"nodeAddress"`
	Felix           Felix       `json:"felix"`
	CSI             CSI         `json:"csi"`
	Datastore       Datastore   `json:"datastore"`
	Typha           Typha       `json:"typha"`
	KubeControllers Replicas    `json:"kubeControllers"`
}

// Image says where images come from.
type Image struct {
	Prefix      string   `json:"prefix"`
	Tag         string   `json:"tag"`
	PullPolicy  string   `json:"pullPolicy"`
	PullSecrets []string `json:"pullSecrets"`
}

// CNI is what pods are given, as the CNI network configuration has it.
type CNI struct {
	MTU                   int    `json:"mtu"` // 0 follows the network between the nodes
	AssignIPv4            bool   `json:"assignIPv4"`
	AssignIPv6            bool   `json:"assignIPv6"`
	HostPorts             bool   `json:"hostPorts"`
	ContainerIPForwarding bool   `json:"containerIPForwarding"`
	NetworkConfig         string `json:"networkConfig"` // the whole of it, if not empty
}

// Pool is one that a starting node proposes where there is none of its family. An empty CIDR is chosen by the node.
type Pool struct {
	Enabled          bool          `json:"enabled"`
	CIDR             string        `json:"cidr"`
	IPIP             api.IPIPMode  `json:"ipip,omitempty"` // of IPv4 only
	VXLAN            api.VXLANMode `json:"vxlan"`
	NATOutgoing      bool          `json:"natOutgoing"`
	DisableBGPExport bool          `json:"disableBGPExport"`
	BlockSize        int           `json:"blockSize"`
	NodeSelector     string        `json:"nodeSelector"`
}

// NamedPool is an IPPool object that is made beside the rest.
type NamedPool struct {
	Name string         `json:"name"`
	Spec api.IPPoolSpec `json:"spec"`
}

// NodeAddress says how a node finds its addresses; empty means that it has none of the family.
type NodeAddress struct {
	IPv4 string `json:"ipv4"`
	IPv6 string `json:"ipv6"`
}

// Felix is what is particular to felix.
type Felix struct {
	Env map[string]string `json:"env"`
}

// Datastore says where resources are kept.
type Datastore struct {
	Type string `json:"type"` // kubernetes or etcdv3
	Etcd Etcd   `json:"etcd"`
}

// Etcd says how to reach it.
type Etcd struct {
	Endpoints string `json:"endpoints"` // URLs, comma-separated
	Secret    string `json:"secret"`    // with etcd-ca, etcd-cert and etcd-key; empty for none
}

// Typha is what is particular to typha.
type Typha struct {
	Replicas        int      `json:"replicas"`
	PasswordSecrets []string `json:"passwordSecrets"` // names
}

// CSI says whether pods can be told their policy.
type CSI struct {
	Enabled bool `json:"enabled"`
}

// Replicas of a Deployment.
type Replicas struct {
	Replicas int `json:"replicas"`
}

// Defaults are the values of the chart.
func Defaults() Values {
	v, err := Values{}.With(deploy.Values())
	if err != nil {
		panic(fmt.Sprintf("deploy/chart/values.yaml: %v", err)) // it is part of the program
	}
	return v
}

// With returns the values with those of a YAML text in the place of theirs, as helm has it: maps are merged, all else replaced.
// A value that does not exist is an error.
func (v Values) With(text []byte) (Values, error) {
	base, err := toMap(v)
	if err != nil {
		return v, err
	}
	over := map[string]any{}
	if err := yaml.Unmarshal(text, &over); err != nil {
		return v, fmt.Errorf("values: %w", err)
	}
	merge(base, over)
	merged, err := yaml.Marshal(base)
	if err != nil {
		return v, err
	}
	var out Values
	if err := yaml.UnmarshalStrict(merged, &out); err != nil {
		return v, fmt.Errorf("values: %w; deploy/chart/values.yaml lists what there is", err)
	}
	return out, nil
}

func merge(into, from map[string]any) {
	for key, value := range from {
		have, isMap := into[key].(map[string]any)
		with, alsoMap := value.(map[string]any)
		if isMap && alsoMap {
			merge(have, with)
			continue
		}
		into[key] = value
	}
}

// toMap is what templates see: the names of values.yaml.
func toMap(v Values) (out map[string]any, err error) {
	text, err := yaml.Marshal(v)
	if err == nil {
		err = yaml.Unmarshal(text, &out)
	}
	return out, err
}
