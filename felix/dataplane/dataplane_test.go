package dataplane_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"github.com/muslin-net/muslin/felix/dataplane"
)

func TestFailuresNameTheirObjects(t *testing.T) {
	var f dataplane.Failures
	assert.NoError(t, f.Join())
	f.Add(dataplane.KindRoute, "10.2.0.0/26", unix.EINVAL)
	f.Add(dataplane.KindLink, "cali1", nil)
	f.Add(dataplane.KindNeighbor, "10.1.0.0 dev vxlan.calico", unix.ENODEV)
	err := f.Join()
	assert.EqualError(t, err, "neigh 10.1.0.0 dev vxlan.calico: no such device\nroute 10.2.0.0/26: invalid argument")
	assert.ErrorIs(t, err, unix.EINVAL)
	var one *dataplane.ObjectError
	assert.True(t, errors.As(err, &one))
	assert.Equal(t, 2, f.Len())
	assert.ErrorIs(t, f.Of(dataplane.KindRoute, "10.2.0.0/26"), unix.EINVAL)
	assert.NoError(t, f.Of(dataplane.KindLink, "cali1"))
}
