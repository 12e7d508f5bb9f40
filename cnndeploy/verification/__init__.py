"""Verification: does a file compute what its checkpoint computes, or lose no more than it may?"""
