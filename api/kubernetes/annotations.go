package kubernetes

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// annotations reads the annotations of a resource. What makes no sense counts as not given, and is noted.
type annotations struct {
	of    map[string]string
	wrong []error
}

func (r *annotations) bad(key, why string) {
	r.wrong = append(r.wrong, fmt.Errorf("annotation %s: %q %s", key, r.of[key], why))
}

// address reads an address of a family.
func (r *annotations) address(key string, v6 bool) string {
	text := r.of[key]
	if text == "" {
		return ""
	}
	if a, err := netip.ParseAddr(text); err != nil || a.Is6() != v6 || a.Zone() != "" {
		r.bad(key, "is no address of its family; write one such as 10.0.0.7 or fd00::7")
		return ""
	}
	return text
}

// network reads an address with the length of its network's prefix. Without a length it is a network of its own.
func (r *annotations) network(key string, v6 bool) string {
	text := r.of[key]
	if text == "" {
		return ""
	}
	if !strings.Contains(text, "/") {
		if a, err := netip.ParseAddr(text); err == nil {
			text = netip.PrefixFrom(a, a.BitLen()).String()
		}
	}
	if p, err := netip.ParsePrefix(text); err != nil || p.Addr().Is6() != v6 {
		r.bad(key, "is no address of its family with a prefix length; write one such as 10.0.0.7/24 or fd00::7/64")
		return ""
	}
	return text
}

// json reads JSON into a value.
func (r *annotations) json(key string, into any) {
	text := r.of[key]
	if text == "" {
		return
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		r.bad(key, fmt.Sprintf("is not the JSON that it has to be (%v); correct or remove it", err))
	}
}
