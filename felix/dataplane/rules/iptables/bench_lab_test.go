//go:build lab

package iptables_test

import "testing"

func BenchmarkRuleChangedAt500Endpoints(b *testing.B) {
	for _, k := range kinds() {
		b.Run(k.Name, k.BenchRuleChanged)
	}
}

func BenchmarkNewPolicyAt500Endpoints(b *testing.B) {
	for _, k := range kinds() {
		b.Run(k.Name, k.BenchNewPolicy)
	}
}
