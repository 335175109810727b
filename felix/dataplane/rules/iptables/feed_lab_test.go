//go:build lab

package iptables_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/rules/rulestest"
	"github.com/muslin-net/muslin/felix/desired"
)

// instead has a script run in the place of the programs that write rules of a variant. REAL is the program.
func instead(t *testing.T, variant, script string) {
	t.Helper()
	dir := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		name := family + "-" + variant + "-restore"
		program, err := exec.LookPath(name)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+strings.ReplaceAll(script, "REAL", program)+"\n"), 0o755))
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// changed has a rule of a policy be about another port.
func changed(port uint16) (c desired.FirewallDelta) {
	p := view.Policy{ID: "np/shop/web", Ingress: []view.Rule{{Action: view.Allow, Protocol: 6, Destination: view.Match{Ports: rulestest.Port(port)}}}}
	for _, chain := range desired.PolicyChains(p, "") {
		c.Chains.Put(chain.Name, chain)
	}
	return c
}

// One run of the program a family commits many changes, of what others have changed meanwhile, too; another takes its place
// when it ends.
func TestARunCommitsManyChanges(t *testing.T) {
	each(t, func(t *testing.T, k rulestest.Kind) {
		file := filepath.Join(t.TempDir(), "runs")
		instead(t, k.Name, "echo $$ >> "+file+"; exec REAL \"$@\"")
		ns := labtest.Enter(t)
		runs := func() []string {
			said, err := os.ReadFile(file)
			require.NoError(t, err)
			return strings.Fields(string(said))
		}
		written := func(port uint16) {
			t.Helper()
			assert.Contains(t, ns.Run(t, "iptables-"+k.Name+" -S cali-pi-np/shop/web; ip6tables-"+k.Name+" -S cali-pi-np/shop/web"), fmt.Sprint("--dports ", port))
		}
		d := k.Open(t, ns)
		d.Whole()
		rulestest.Apply(t, d, rulestest.Rich())
		rulestest.Apply(t, d, changed(7000)) // for the last time there are sets to remove, which may take a run's end
		before := len(runs())
		for port := range uint16(9) {
			rulestest.Apply(t, d, changed(7001+port))
			written(7001 + port)
		}
		ns.Run(t, "iptables-"+k.Name+" -F; iptables-"+k.Name+" -X; ip6tables-"+k.Name+" -F cali-pi-np/shop/web")
		d.Resync()
		rulestest.Apply(t, d, changed(7010))
		written(7010)
		require.Less(t, len(runs())-before, 5, "for 10 changes of both families")

		loop := desired.FirewallDelta{}
		loop.Chains.Put("cali-pi-np/shop/web", desired.Chain{Name: "cali-pi-np/shop/web", Rules: []desired.Rule{{Do: desired.Jump, Target: "cali-pi-np/shop/web"}}})
		d.Update(loop)
		require.Error(t, d.Apply(t.Context()))
		rulestest.Apply(t, d, changed(7011))
		written(7011)

		for _, pid := range runs() {
			n, err := strconv.Atoi(pid)
			require.NoError(t, err)
			if program, err := os.Readlink("/proc/" + pid + "/exe"); err == nil && strings.Contains(program, "xtables") {
				require.NoError(t, syscall.Kill(n, syscall.SIGKILL))
			}
		}
		rulestest.Apply(t, d, changed(7012))
		written(7012)
	})
}

// A program that reads all of its input before it does anything is run for each change.
func TestAProgramThatCommitsAtItsEnd(t *testing.T) {
	instead(t, "nft", "all=$(cat); echo \"$all\" | REAL \"$@\"")
	ns := labtest.Enter(t)
	k := kinds()[1]
	d := k.Open(t, ns)
	d.Whole()
	rulestest.Apply(t, d, rulestest.Rich())
	rulestest.Apply(t, d, changed(7001))
	assert.Contains(t, ns.Run(t, "iptables-nft -S cali-pi-np/shop/web"), "--dports 7001")
}

// What is new in great number is written in pieces, and means the same.
func TestManyNewChains(t *testing.T) {
	each(t, func(t *testing.T, k rulestest.Kind) {
		ns := labtest.Enter(t)
		d := k.Open(t, ns)
		d.Whole()
		rulestest.Apply(t, d, rulestest.Crowd(300, true))
		again := k.Open(t, ns)
		again.Whole()
		rulestest.Apply(t, again, rulestest.Crowd(300, true))
		assert.Zero(t, again.Writes(), "it is what is wanted")
	})
}
