package conf

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// What a host-local configuration may have for a subnet: the range that Kubernetes gave to the node.
var podCIDR = map[string]func(netip.Addr) bool{"usePodCidr": netip.Addr.Is4, "usePodCidrIPv6": netip.Addr.Is6}

// UsesPodCIDR tells whether the IPAM part leaves a subnet to the node.
func UsesPodCIDR(stdin []byte) bool {
	found := false
	_, err := subnets(stdin, func(subnet string) (string, error) {
		_, uses := podCIDR[subnet]
		found = found || uses
		return subnet, nil
	})
	return found && err == nil
}

// WithPodCIDRs is the configuration with the node's ranges in it: usePodCidr is the first one of IPv4, usePodCidrIPv6 of IPv6.
func WithPodCIDRs(stdin []byte, cidrs []netip.Prefix) ([]byte, error) {
	return subnets(stdin, func(subnet string) (string, error) {
		of, uses := podCIDR[subnet]
		if !uses {
			return subnet, nil
		}
		for _, c := range cidrs {
			if of(c.Addr()) {
				return c.String(), nil
			}
		}
		return "", fmt.Errorf("ipam subnet %q: Kubernetes gave the node no such range (it has %v); set the range of pods in the controller manager, or use IPAM of type %s", subnet, cidrs, OwnIPAM)
	})
}

// subnets replaces each subnet of the IPAM part: its own, and those of its ranges.
func subnets(stdin []byte, replace func(string) (string, error)) ([]byte, error) {
	var network map[string]any
	if err := json.Unmarshal(stdin, &network); err != nil {
		return nil, err
	}
	ipam, _ := network["ipam"].(map[string]any)
	ranges, _ := ipam["ranges"].([]any)
	parts := []any{ipam}
	for _, set := range ranges {
		list, _ := set.([]any)
		parts = append(parts, list...)
	}
	for _, part := range parts {
		object, _ := part.(map[string]any)
		subnet, ok := object["subnet"].(string)
		if !ok {
			continue
		}
		with, err := replace(subnet)
		if err != nil {
			return nil, err
		}
		object["subnet"] = with
	}
	return json.Marshal(network)
}
