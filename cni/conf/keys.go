package conf

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api/spelling"
)

// keys are the keys of a configuration and of its parts, as Calico's users have them (spec §6.1). Those with nothing to do
// here are known all the same: felix knows the node, the datastore is typha's, and there is no lock.
var keys = map[string][]string{
	"": {
		// of every plugin (CNI specification)
		"cniVersion", "name", "type", "ipam", "dns", "args", "prevResult", "capabilities", "runtimeConfig", "ipMasq", "disableCheck", "disableGC",
		// that say something here
		"felix_socket", "mtu", "num_queues", "device_type", "policy", "container_settings", "feature_control", "include_default_routes",
		"policy_setup_timeout_seconds", "require_policy",
		// of no account here
		"datastore_type", "etcd_endpoints", "etcd_discovery_srv", "etcd_key_file", "etcd_cert_file", "etcd_ca_cert_file", "etcd_authority",
		"etcd_scheme", "kubernetes", "calico_api_group", "qps", "burst", "nodename", "nodename_file", "nodename_file_optional", "hostname",
		"require_mtu_file", "endpoint_status_dir", "ipam_lock_file", "log_level", "log_file_path", "log_file_max_size", "log_file_max_age",
		"log_file_max_count", "mode", "vxlan_mac_prefix", "vxlan_vni", "windows_use_single_network", "windows_disable_host_subnet_nat_exception",
		"windows_pause_container_timeout", "windows_loopback_DSR",
	},
	"ipam":               {"type", "name", "assign_ipv4", "assign_ipv6", "ipv4_pools", "ipv6_pools", "subnet", "log_level"},
	"policy":             {"type", "k8s_api_root", "k8s_auth_token", "k8s_client_certificate", "k8s_client_key", "k8s_certificate_authority"},
	"container_settings": {"allow_ip_forwarding"},
	"feature_control":    {"ip_addrs_no_ipam", "floating_ips"},
}

// checkKeys refuses a key that nobody knows: a setting whose name is misspelt would be one that silently does not count. Keys
// with a domain are others' ("cni.dev/…").
func checkKeys(part string, document []byte) error {
	var found map[string]json.RawMessage
	if err := json.Unmarshal(document, &found); err != nil {
		return nil //nolint:nilerr // what is no object, or null, was judged when it was read
	}
	at := ""
	if part != "" {
		at = part + "."
	}
	for _, key := range slices.Sorted(maps.Keys(found)) {
		if !slices.Contains(keys[part], key) && !strings.ContainsAny(key, "./") {
			return fmt.Errorf("network configuration: key %q is unknown%s", at+key, nearest(key, keys[part]))
		}
		nested := keys[at+key] != nil
		if nested && key == "ipam" {
			var ipam struct{ Type string }
			nested = json.Unmarshal(found[key], &ipam) != nil || ipam.Type == OwnIPAM || ipam.Type == "" // others' plugins have their own
		}
		if nested {
			if err := checkKeys(at+key, found[key]); err != nil {
				return err
			}
		}
	}
	return nil
}

// nearest proposes a key that begins as what was written, or differs from it in no more than a third of its letters.
func nearest(written string, known []string) string {
	best, distance := "", len(written)/3+1
	for _, k := range known {
		if len(written) > 3 && strings.HasPrefix(k, written) {
			best = k
			break
		}
		if d := spelling.Distance(written, k); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return "; take it out"
	}
	return fmt.Sprintf("; did you mean %q?", best)
}
