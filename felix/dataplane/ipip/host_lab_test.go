//go:build lab && !secondkernel

package ipip_test

// secondKernel: see module_lab_test.go.
const secondKernel = false
