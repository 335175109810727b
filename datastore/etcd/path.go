package etcd

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unique"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-net/muslin/api"
)

// Where things live. All keys of the project are under root.
const (
	root           = "/calico/"
	resources      = root + "resources/v3/projectcalico.org/"
	ipam           = root + "ipam/v2/"
	blocks         = ipam + "assignment/"
	handles        = ipam + "handle/"
	ipamConfigPath = ipam + "config"
)

// The kinds whose paths and values differ from those of the other kinds.
const (
	kindBlock    = "IPAMBlock"
	kindAffinity = "BlockAffinity"
	kindHandle   = "IPAMHandle"
	kindConfig   = "IPAMConfiguration"
)

// The first parts of an affinity's name and path: who may own a block.
const (
	affinityHost    = "host"
	affinityVirtual = "virtual"
)

// configName is the name of the only IPAMConfiguration; its path has no name in it.
const configName = "default"

// isIPAM tells whether a kind is stored in the form of Calico's IPAM, without metadata.
func isIPAM(kind string) bool {
	switch kind {
	case kindBlock, kindAffinity, kindHandle, kindConfig:
		return true
	}
	return false
}

// pathOf returns the etcd key of an object. The error says what is wrong with the name.
func pathOf(kind api.Kind, key api.Key) (string, error) {
	switch {
	case key.Name == "":
		return "", errors.New("the name is empty; set metadata.name")
	case kind.Namespaced && key.Namespace == "":
		return "", errors.New("the namespace is empty; set metadata.namespace")
	case !kind.Namespaced && key.Namespace != "":
		return "", fmt.Errorf("%s objects have no namespace; remove metadata.namespace %q", kind.Name, key.Namespace)
	case strings.Contains(key.Namespace, "/"):
		return "", fmt.Errorf("namespace %q contains a slash; choose one without", key.Namespace)
	}
	switch kind.Name {
	case kindBlock:
		return blockPath(key.Name)
	case kindAffinity:
		return affinityPath(key.Name)
	case kindConfig:
		if key.Name != configName {
			return "", fmt.Errorf("name %q: the only IPAMConfiguration is called %q", key.Name, configName)
		}
		return ipamConfigPath, nil
	}
	if strings.Contains(key.Name, "/") {
		return "", fmt.Errorf("name %q contains a slash; choose one without", key.Name)
	}
	switch {
	case kind.Name == kindHandle:
		return handles + key.Name, nil
	case kind.Namespaced:
		return resources + kind.Plural + "/" + key.Namespace + "/" + key.Name, nil
	default:
		return resources + kind.Plural + "/" + key.Name, nil
	}
}

// keyOf is the inverse of pathOf. It reports false for what is no object of the kind, which includes keys that pathOf
// would spell differently: such an object could be read but never written back.
func keyOf(kind api.Kind, path string) (api.Key, bool) {
	key := api.Key{Kind: kind.Name}
	rest := path
	switch kind.Name {
	case kindBlock: // assignment/ipv4/block/10.9.0.4-30
		parts := strings.Split(strings.TrimPrefix(path, blocks), "/")
		if len(parts) != 3 {
			return key, false
		}
		key.Name = cidrName(parts[2])
	case kindAffinity: // host/node-a/ipv4/block/10.9.0.4-30
		parts := strings.Split(strings.TrimPrefix(path, ipam), "/")
		if len(parts) != 5 {
			return key, false
		}
		key.Name = parts[0] + "/" + parts[1] + "/" + cidrName(parts[4])
	case kindHandle:
		key.Name = strings.TrimPrefix(path, handles)
	case kindConfig:
		key.Name = configName
	default:
		rest = strings.TrimPrefix(path, resources+kind.Plural+"/")
		key.Name = rest
		if kind.Namespaced {
			key.Namespace, key.Name, _ = strings.Cut(rest, "/")
		}
	}
	again, err := pathOf(kind, key)
	// Names are kept; paths need not be kept alive for them.
	key.Namespace, key.Name = unique.Make(key.Namespace).Value(), strings.Clone(key.Name)
	return key, err == nil && again == path
}

// rangeOf returns the smallest range of etcd keys that holds all objects of the kind in the namespace ("" for all) whose
// names have the prefix. The range may hold others too: whoever uses it checks namespace and name of what he gets.
func rangeOf(kind api.Kind, namespace, prefix string) (start, end string) {
	switch kind.Name {
	case kindBlock: // the family comes first in the path, and a prefix of a CIDR does not always tell it
		start = blocks
	case kindAffinity:
		parts := strings.SplitN(prefix, "/", 3)
		switch {
		case len(parts) == 3:
			start = ipam + parts[0] + "/" + parts[1] + "/"
		case len(parts) == 2:
			start = ipam + parts[0] + "/" + parts[1]
		default: // one range spans both owner types: nothing lies between them
			return ipam + affinityHost + "/", clientv3.GetPrefixRangeEnd(ipam + affinityVirtual + "/")
		}
	case kindHandle:
		start = handles + prefix
	case kindConfig:
		return ipamConfigPath, ipamConfigPath + "\x00"
	default:
		start = resources + kind.Plural + "/"
		switch {
		case kind.Namespaced && namespace != "":
			start += namespace + "/" + prefix
		case !kind.Namespaced:
			start += prefix
		}
	}
	return start, clientv3.GetPrefixRangeEnd(start)
}

// blockPath returns the key of a block from its name, the CIDR.
func blockPath(name string) (string, error) {
	p, err := canonicalCIDR(name)
	if err != nil {
		return "", err
	}
	return blocks + family(p) + "/block/" + pathCIDR(name), nil
}

// affinityPath returns the key of an affinity from its name, <type>/<owner>/<cidr>.
func affinityPath(name string) (string, error) {
	parts := strings.SplitN(name, "/", 3)
	if len(parts) != 3 || parts[1] == "" || (parts[0] != affinityHost && parts[0] != affinityVirtual) {
		return "", fmt.Errorf("name %q is not of the form host/<node>/<cidr> or virtual/<owner>/<cidr>", name)
	}
	p, err := canonicalCIDR(parts[2])
	if err != nil {
		return "", err
	}
	return ipam + parts[0] + "/" + parts[1] + "/" + family(p) + "/block/" + pathCIDR(parts[2]), nil
}

// canonicalCIDR parses a CIDR and insists on the one spelling that names an object.
func canonicalCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Errorf("%q is not a CIDR; write it as 10.9.0.4/30", s)
	}
	if c := p.Masked().String(); c != s {
		return p, fmt.Errorf("CIDR %q is not in canonical form; write %q", s, c)
	}
	return p, nil
}

func family(p netip.Prefix) string {
	if p.Addr().Is4() {
		return "ipv4"
	}
	return "ipv6"
}

// pathCIDR and cidrName convert between 10.9.0.4/30 and 10.9.0.4-30.
func pathCIDR(name string) string { return strings.Replace(name, "/", "-", 1) }

func cidrName(path string) string { return strings.Replace(path, "-", "/", 1) }
