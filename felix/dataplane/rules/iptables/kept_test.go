package iptables

import (
	"testing"

	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/dataplane/rules/rulestest"
)

func TestAKeptChainIsKnownByItsList(t *testing.T) {
	d := &Driver{}
	d.model = model.New(d.sets())
	rulestest.KeptChain(t, d, kernelChain)
}
